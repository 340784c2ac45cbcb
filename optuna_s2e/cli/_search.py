"""The `s2e search` command."""

from __future__ import annotations

import argparse
import shlex
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from optuna_s2e._attributes import OBJECTIVE_KEY
from optuna_s2e.analysis import recommend
from optuna_s2e.cli import _common, _paper
from optuna_s2e.cli._errors import name_options
from optuna_s2e.cli._options import (
    DASHBOARD,
    MACHINE,
    SEED,
    TRIALS,
    Options,
    add_table,
    choice,
    flag,
    number,
    option,
    study_name,
    whole,
)
from optuna_s2e.estimators import DEFAULT_ESTIMATOR, ESTIMATORS, SIGNS
from optuna_s2e.label_noise import NOISES
from optuna_s2e.parallel import Search
from optuna_s2e.sampler import S2ESampler
from optuna_s2e.schedules import DEFAULT_KIND, SPACES

if TYPE_CHECKING:
    from optuna_s2e.coteaching import CoteachingObjective
    from optuna_s2e.dashboard import DashboardReporter

HELP = """\
Each trial trains Co-teaching under one schedule and returns its validation
error. The storage keeps everything: the same command again resumes the search,
the same command elsewhere adds a worker, and Ctrl-C loses at most the running
trial. With --batch, one process trains the K trials of a generation together.

    s2e search --data digits --noise symmetric --noise-rate 0.5
    s2e search --data mnist --data-root ~/data --noise pair --noise-rate 0.45 \\
        --storage postgresql://me@db/s2e --study-name mnist-pair45

Next: `s2e status` shows where the search stands, `s2e dashboard` draws it,
`s2e worker` joins it, `s2e evaluate` compares its schedule on test data.
"""


INFORMED_KIND = "eq1"  # the space that takes a noise rate
DEFAULT_METHOD = "coteaching"

# --- options ---------------------------------------------------------------------------------

OPTIONS: dict[str, Options] = {
    "data": {
        "--data": option(
            "NAME", "digits (comes with scikit-learn), mnist, cifar10, cifar100 or a FILE.npz",
            "digits",
        ),
        "--noise": choice(
            NOISES,
            "how training labels are made wrong (default: symmetric for named data, which are "
            "clean; none for a FILE.npz)",
        ),
        "--noise-rate": option(
            "E", "probability that a label is made wrong, in [0, 1) (default: 0.5)",
            kind=number(0, 1, open_high=True),
        ),
        "--published-noise": {
            "action": argparse.BooleanOptionalAction, "default": False,
            "help": "take the wrong labels of the Co-teaching and S2E papers, bit for bit",
        },
        "--validation": choice(
            ["clean", "noisy"],
            "labels of the validation data, which are split off the training data; those that a "
            "FILE.npz holds itself are taken as they are",
            "clean",
        ),
    },
    "training": {
        "--network": option("NAME", "mlp, cnn2, cnn7, cnn9, resnet18, ...", "mlp"),
        "--epochs": option("T", "epochs of each training", 40, whole(2)),
        "--batch-size": option(
            "B", "samples per step (default: 64 for the digits, 128 for other data)",
            kind=whole(1, 10**9),
        ),
        "--learning-rate": option(
            "LR", "learning rate (default: 0.01 for the digits, 0.001 for other data)",
            kind=number(0, open_low=True),
        ),
        "--method": option(
            "NAME",
            "what is trained under the schedules: coteaching, mentornet, coteaching+ or jocor "
            "(docs/methods.md)",
            DEFAULT_METHOD,
        ),
        "--metric": choice(
            ["validation_error", "validation_loss"],
            "what a trial returns. validation_loss is the cross-entropy; under pair noise it "
            "prefers schedules that do not resist the noise",
            "validation_error",
        ),
    },
    "search": {
        "--paper": flag(
            "take the set-up of the S2E paper: Table 1's space, the validation loss, clean "
            "validation labels, the published noise, the paper's network, optimiser and 200 "
            "epochs, Algorithm 2 as printed with K = 6 and 10 generations, and train the best "
            "schedule anew. Options given beside it win (docs/how-it-works.md)"
        ),
        "--space": choice(
            sorted(SPACES),
            "which schedules are searched. eq1: Co-teaching's formula, 3 parameters; table1: the "
            "paper's space, 19 parameters",
            DEFAULT_KIND,
        ),
        "--noise-rate-estimate": {
            "action": argparse.BooleanOptionalAction,
            "help": "first estimate how many labels are wrong, then search the schedules of eq1 "
            "that suit that rate; it costs about 1.3 trainings, once per study. --no-...: search "
            "all schedules of the space (default: estimate with eq1; a study goes on as it began)",
        },
        "--known-noise-rate": option(
            "E", "the share of labels that are wrong, if you know it: nothing is estimated then. "
            "The search is not told what --noise-rate adds, unless you repeat it here",
            kind=number(0, 1),
        ),
        "--trials": option(
            "N", "stop when the study has N complete trials, earlier ones and other workers' "
            "included (docs/results.md: what more of them gain)", 18, TRIALS,
        ),
        "--population-size": option(
            "K", "trials between two updates of theta", 6, whole(1)
        ),
        "--batch": flag(
            "train the K trials of a generation together, in one process at a time; killing it "
            "changes no theta (docs/parallel.md)"
        ),
        "--estimator": choice(
            list(ESTIMATORS),
            "how theta moves (default %(default)s). "
            + "; ".join(f"{name}: {e.summary}" for name, e in ESTIMATORS.items()),
            DEFAULT_ESTIMATOR,
        ),
        "--sign": choice(
            SIGNS, "of the step of --estimator paper: - as in Eq 9, + as Eq 8 prints it", "-"
        ),
        "--reuse": option(
            "N", "earlier updates whose trials take part again; 0 in the paper (default: that of "
            "the estimator)", kind=whole(0, 1000),
        ),
        "--seed": option("N", "seed of the noise, the trainings and the search", 0, SEED),
        "--on-config-change": choice(
            ["refuse", "adopt"],
            "what to do if the study was searched with other settings",
            "refuse",
        ),
    },
    "machine": MACHINE,
    "dashboard": DASHBOARD,
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    add_table(parser, study_name("made from data and noise, such as digits-symmetric-0.5"))
    for title, options in OPTIONS.items():
        add_table(parser, options, title)


# --- the search ------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Search until the study is complete or a signal comes."""
    if args.paper:
        _paper.set_up(args, add_options)
    sampler = _make_sampler(args)  # the options are looked at before the data are loaded
    reporter = _common.make_reporter(args, args.trials)
    objective = _make_objective(args, reporter)
    settings = objective.settings or {}
    by_default = args.noise is None and settings["data"]["noise"] != "none"
    hint = " Add none with --noise none." if by_default else ""
    print(f"Data: {objective.data.describe_noise()}{hint}")
    objective.check()
    storage = _common.open_for_work(args.storage, create=True)  # last: an error writes nothing
    name = args.study_name or _study_name(**settings["data"]) + "-paper" * args.paper
    study = _open_study(storage, name, objective, args)
    if reporter is not None:
        line = _with_option(args.argv, "--storage", args.storage)
        reporter.record_command(study, ["s2e", *line])
    Search(sampler.settings, args.seed, args.trials).write(study)
    done = _common.n_complete(study)
    if done:
        print(f"Resuming study {study.study_name!r}: {done} trials are complete.")
    if done < args.trials:
        _common.prepare_study(study, objective)
    callbacks = [reporter] if reporter is not None else []
    optimize = _common.optimize_in_batches if args.batch else _common.optimize
    stopped = optimize(study, objective, args.trials, callbacks)
    if stopped:
        return _common.say_stopped(args, stopped)
    _print_result(study, args)
    return _paper.retrain(args, study, objective.data) if args.paper else 0


def _make_objective(
    args: argparse.Namespace, reporter: DashboardReporter | None
) -> CoteachingObjective:
    from optuna_s2e.coteaching import CoteachingObjective, load_data

    if args.noise == "none" and (args.noise_rate or args.published_noise):
        raise ValueError(
            "noise must be 'symmetric' or 'pair' if a noise rate or the published noise is asked "
            "for, but got 'none'. Leave out one of the two."
        )
    noise_rate = _noise_rate(args)
    _common.set_threads(args.threads)
    data = load_data(
        args.data,
        root=args.data_root,
        noise=args.noise,
        noise_rate=args.noise_rate,
        seed=args.seed,
        validation=args.validation,
        published_noise=args.published_noise,
    )
    return CoteachingObjective(
        data,
        network=args.network,
        n_epochs=args.epochs,
        device=args.device,
        seed=args.seed,
        kind=args.space,
        noise_rate=noise_rate,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        metric=args.metric,
        method=args.method,
        reporter=reporter,
    )


def _noise_rate(args: argparse.Namespace) -> float | str | None:
    """Return the noise rate that the objective is told: "estimate" by default."""
    known: float | None = args.known_noise_rate
    if known is not None:
        if args.noise_rate_estimate:
            raise ValueError(
                "--known-noise-rate and --noise-rate-estimate exclude each other. Leave one out."
            )
        return known
    by_default = args.noise_rate_estimate is None and args.space == INFORMED_KIND
    return "estimate" if args.noise_rate_estimate or by_default else None


def _study_name(name: str, noise: str, noise_rate: float, **_: Any) -> str:
    """Return the default name of a study from arguments of `load_data`: digits-symmetric-0.5."""
    kind = noise if noise == "none" else f"{noise}-{noise_rate:g}"
    return f"{Path(name).stem}-{kind}"


def _make_sampler(args: argparse.Namespace, on_config_change: str | None = None) -> S2ESampler:
    return S2ESampler(
        population_size=args.population_size,
        estimator=args.estimator,
        reuse=args.reuse,
        sign=args.sign,
        seed=args.seed,
        on_config_change=on_config_change or args.on_config_change,
    )


def _open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    objective: CoteachingObjective,
    args: argparse.Namespace,
) -> optuna.Study:
    """Create or load a study with its sampler.

    A study of other settings is refused. If all its trials failed, its settings are replaced: they
    may be why. Unless the command line says which noise rate the search follows, it goes on with
    that of the study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    if study.directions != [optuna.study.StudyDirection.MINIMIZE]:
        raise ValueError(f"Study {name!r} must minimise one objective. Use another --study-name.")
    _common.check_no_classifier(study)
    recorded, searched = study.user_attrs.get(OBJECTIVE_KEY), None
    with suppress(ValueError):  # damaged: it is written anew
        searched = Search.read(study).settings
    trials = study.get_trials(deepcopy=False)
    if recorded is None and trials:
        raise ValueError(
            f"Study {name!r} holds trials of another objective. Use another --study-name."
        )
    kept = [t for t in trials if t.state not in (TrialState.FAIL, TrialState.WAITING)]
    is_asked = args.known_noise_rate is not None or args.noise_rate_estimate is not None
    if kept and isinstance(recorded, dict) and not is_asked:
        objective.spaces.noise_rate = recorded.get("noise_rate")
    settings: dict[str, Any] = objective.settings or {}
    old = recorded.get("data") if isinstance(recorded, dict) else None
    if isinstance(old, dict) and "content" not in old:  # of an earlier release
        data = {key: value for key, value in settings["data"].items() if key != "content"}
        settings = {**settings, "data": data}
    sampler = _make_sampler(args, None if kept else "adopt")
    changes = [] if recorded in (None, settings) else [_differences(settings, recorded)]
    if changes and kept:
        running = [t.number for t in kept if t.state == TrialState.RUNNING]
        raise ValueError(
            f"Study {name!r} searches another objective: {changes[0]}. Use another --study-name, "
            "or the settings of the study."
            + (f" Trial {running[0]} is RUNNING with them." if running else "")
        )
    sampler.check(study)
    if searched not in (None, sampler.settings):
        changes.append(_differences(sampler.settings, searched))
    if changes:
        what = (
            "goes on with other settings from the next generation on"
            if kept
            else "has no completed trial, so its settings are replaced"
        )
        print(f"Study {name!r} {what}: {name_options(', '.join(changes), vars(args))}.")
    if recorded != settings:
        study.set_user_attr(OBJECTIVE_KEY, settings)
        if recorded is not None:
            objective.spaces.forget(study)
        with warnings.catch_warnings():  # the dashboard's axes get a name
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([settings["metric"]])
    study.sampler = sampler
    return study


def _differences(own: dict[str, Any], recorded: Any, prefix: str = "") -> str:
    """List the settings that differ from the recorded ones."""
    if not isinstance(recorded, dict):
        return f"its settings are damaged ({recorded!r})"
    found = []
    for key in sorted({*own, *recorded}):
        here, there = own.get(key), recorded.get(key)
        if isinstance(here, dict) and isinstance(there, dict) and here != there:
            found.append(_differences(here, there, f"{prefix}{key}."))
        elif here != there and key == "noise_rate" and not prefix:
            found.append(f"it is searched with {_asks(here)}, there with {_asks(there)}")
        elif here != there and key == "method" and not prefix:
            found.append(
                f"method is {here or DEFAULT_METHOD!r}, there {there or DEFAULT_METHOD!r}"
            )
        elif here != there and key == "content":
            found.append(f"the data in {own['name']!r} have changed")
        elif here != there:
            found.append(f"{prefix}{key} is {here!r}, there {there!r}")
    return ", ".join(found)


def _asks(noise_rate: object) -> str:
    """Return the option that lets a search follow this noise rate."""
    if noise_rate is None:
        return "--no-noise-rate-estimate"
    if noise_rate == "estimate":
        return "--noise-rate-estimate"
    return f"--known-noise-rate {noise_rate}"


# --- what is printed -------------------------------------------------------------------------


def _print_result(study: optuna.Study, args: argparse.Namespace) -> None:
    """Print the best trial and the commands that come next."""
    trial = study.best_trial
    values = ", ".join(
        f"{n} {v:.4g}" for n, v in trial.params.items() if not trial.distributions[n].single()
    )
    print(f"Best of {args.trials} trials: trial {trial.number}, {args.metric} "
          f"{trial.value:.4f} ({values})")  # fmt: skip
    picked = recommend(study)
    if picked.trial != trial.number and not args.paper:
        print(f"Its value is partly luck. Recommended: {picked.source}, after smoothing over "
              "similar trials: s2e evaluate and export use it.")  # fmt: skip
    which = _common.study_options(args, study)
    root = f" --data-root {shlex.quote(str(args.data_root))}" if args.data_root else ""
    line = _with_option(args.argv, "--trials", 2 * args.trials)
    steps = {
        "search on": _common.shown(args, ["s2e", *line]),
        "where it stands": f"s2e status {which}",
        "compare on test data": f"s2e evaluate {which}{root}{' --rule best' * args.paper}",
    }
    _common.print_next_steps(args, study, steps)


def _with_option(argv: Sequence[str], option: str, value: object) -> list[str]:
    """Return the command line with another value of an option."""
    line = list(argv)
    if option in line:
        line[line.index(option) + 1] = str(value)
        return line
    return [*(a for a in line if not a.startswith(f"{option}=")), option, str(value)]
