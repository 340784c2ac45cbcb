"""The `s2e search` command."""

from __future__ import annotations

import argparse
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from optuna_s2e._attributes import OBJECTIVE_KEY
from optuna_s2e.analysis import recommend
from optuna_s2e.cli import _common
from optuna_s2e.estimators import DEFAULT_ESTIMATOR, ESTIMATORS
from optuna_s2e.label_noise import NOISES
from optuna_s2e.parallel import Search
from optuna_s2e.sampler import S2ESampler
from optuna_s2e.schedules import DEFAULT_KIND, SPACES

if TYPE_CHECKING:
    from optuna_s2e.coteaching import CoteachingObjective
    from optuna_s2e.dashboard import DashboardReporter

HELP = """\
Search the schedule R(t) for data with wrong labels.

Each trial trains Co-teaching under one schedule and returns its validation
error. The storage keeps everything: the same command again resumes the search,
the same command elsewhere adds a worker, and Ctrl-C loses at most the running
trial. With --batch, one process trains the K trials of a generation together.

    s2e search --data digits --noise symmetric --noise-rate 0.5 --trials 60
    s2e search --data mnist --data-root ~/data --noise pair --noise-rate 0.45 \\
        --storage postgresql://me@db/s2e --study-name mnist-pair45

Next: `s2e status` shows where the search stands, `s2e dashboard` draws it,
`s2e worker` joins it, `s2e evaluate` compares its schedule on test data.
"""


# --- options ---------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command takes."""
    _common.add_study(parser, "made from data and noise, such as digits-symmetric-0.5")
    _add_data_options(parser)
    _add_training_options(parser)
    _add_search_options(parser)
    _common.add_machine(parser)
    _common.add_reporter(parser)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", default="digits", metavar="NAME",
        help="digits (comes with scikit-learn), mnist, cifar10, cifar100 or a FILE.npz (default "
        "%(default)s)",
    )  # fmt: skip
    data.add_argument(
        "--noise", default="symmetric", choices=NOISES,
        help="how training labels are made wrong (default %(default)s)",
    )  # fmt: skip
    _common.add_float(
        data, "--noise-rate", 0, 1, open_high=True, default=0.5, metavar="E",
        help="probability that a label is made wrong, in [0, 1) (default %(default)s)",
    )  # fmt: skip
    data.add_argument(
        "--published-noise", action="store_true",
        help="take the wrong labels of the Co-teaching and S2E papers, bit for bit",
    )  # fmt: skip
    data.add_argument(
        "--validation", default="clean", choices=["clean", "noisy"],
        help="labels of the validation data, which are split off the training data (default "
        "%(default)s)",
    )  # fmt: skip


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    training = parser.add_argument_group("training")
    training.add_argument(
        "--network", default="mlp", metavar="NAME",
        help="mlp, cnn2, cnn7, cnn9, resnet18, ... (default %(default)s)",
    )  # fmt: skip
    _common.add_int(
        training, "--epochs", 2, default=40, metavar="T",
        help="epochs of each training (default %(default)s)",
    )  # fmt: skip
    _common.add_int(
        training, "--batch-size", 1, metavar="B",
        help="samples per step (default: 64 for the digits, 128 for other data)",
    )  # fmt: skip
    _common.add_float(
        training, "--learning-rate", 0, open_low=True, metavar="LR",
        help="learning rate (default: 0.01 for the digits, 0.001 for other data)",
    )  # fmt: skip
    training.add_argument(
        "--metric", default="validation_error", choices=["validation_error", "validation_loss"],
        help="what a trial returns. validation_loss is the cross-entropy; under pair noise it "
        "prefers schedules that do not resist the noise (default %(default)s)",
    )  # fmt: skip


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    search = parser.add_argument_group("search")
    search.add_argument(
        "--space", default=DEFAULT_KIND, choices=sorted(SPACES),
        help="which schedules are searched. eq1: Co-teaching's formula, 3 parameters; table1: "
        "the paper's space, 19 parameters (default %(default)s)",
    )  # fmt: skip
    _common.add_int(
        search, "--trials", 1, default=60, metavar="N",
        help="stop when the study has N complete trials, earlier ones and other workers' "
        "included (default %(default)s)",
    )  # fmt: skip
    _common.add_int(
        search, "--population-size", 1, default=6, metavar="K",
        help="trials between two updates of theta (default %(default)s)",
    )  # fmt: skip
    search.add_argument(
        "--batch", action="store_true",
        help="train the K trials of a generation together, in one process at a time; killing it "
        "changes no theta (docs/parallel.md)",
    )  # fmt: skip
    search.add_argument(
        "--estimator", default=DEFAULT_ESTIMATOR, choices=list(ESTIMATORS),
        help="how theta moves (default %(default)s). "
        + "; ".join(f"{name}: {e.summary}" for name, e in ESTIMATORS.items()),
    )  # fmt: skip
    _common.add_int(
        search, "--reuse", 0, 1000, metavar="N",
        help="earlier updates whose trials take part again; 0 in the paper (default: that of the "
        "estimator)",
    )  # fmt: skip
    _common.add_int(
        search, "--seed", 0, default=0, metavar="N",
        help="seed of the noise, the trainings and the search (default %(default)s)",
    )  # fmt: skip
    search.add_argument(
        "--on-config-change", default="refuse", choices=["refuse", "adopt"],
        help="what to do if the study was searched with other settings (default %(default)s)",
    )  # fmt: skip


# --- the search ------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Search until the study is complete or a signal comes."""
    sampler = S2ESampler(
        population_size=args.population_size,
        estimator=args.estimator,
        reuse=args.reuse,
        seed=args.seed,
        on_config_change=args.on_config_change,
    )
    reporter = _common.make_reporter(args, args.trials)
    objective = _make_objective(args, reporter)
    storage = _common.open_for_work(args.storage)  # last: an error writes nothing
    name = args.study_name or f"{Path(args.data).stem}-{args.noise}-{args.noise_rate:g}"
    study = _open_study(storage, name, objective.settings, sampler)
    sampler.check(study)
    if reporter is not None:
        line = _with_option(args.argv, "--storage", args.storage)
        reporter.record_command(study, ["s2e", *line])
    Search(sampler.settings, args.seed, args.trials).write(study)
    done = _common.n_complete(study)
    if done:
        print(f"Resuming study {study.study_name!r}: {done} trials are complete.")
    callbacks = [reporter] if reporter is not None else []
    optimize = _common.optimize_in_batches if args.batch else _common.optimize
    stopped = optimize(study, objective, args.trials, callbacks)
    _print_result(study, args, bool(stopped))
    return _common.EXIT_CODES.get(stopped, 0)


def _make_objective(
    args: argparse.Namespace, reporter: DashboardReporter | None
) -> CoteachingObjective:
    from optuna_s2e.coteaching import CoteachingObjective, load_data

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
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        metric=args.metric,
        reporter=reporter,
    )


def _open_study(
    storage: optuna.storages.BaseStorage, name: str, settings: Any, sampler: S2ESampler
) -> optuna.Study:
    """Create or load a study; refuse one of another objective."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=name, storage=storage, sampler=sampler, load_if_exists=True
    )
    if study.directions != [optuna.study.StudyDirection.MINIMIZE]:
        raise ValueError(f"Study {name!r} must minimise one objective. Use another --study-name.")
    recorded = study.user_attrs.get(OBJECTIVE_KEY)
    if recorded is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(OBJECTIVE_KEY, settings)
        with warnings.catch_warnings():  # the dashboard's axes get a name
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([settings["metric"]])
    elif recorded is None:
        raise ValueError(
            f"Study {name!r} holds trials of another objective. Use another --study-name."
        )
    elif recorded != settings:
        raise ValueError(
            f"Study {name!r} searches another objective: {_differences(settings, recorded)}. "
            "Use another --study-name, or the settings of the study."
        )
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
        elif here != there:
            found.append(f"{prefix}{key} is {here!r}, there {there!r}")
    return ", ".join(found)


# --- what is printed -------------------------------------------------------------------------


def _print_result(study: optuna.Study, args: argparse.Namespace, interrupted: bool) -> None:
    """Print the best trial, or what was lost, and the commands that come next."""
    if interrupted:
        running = "trials are" if args.batch else "trial is"
        print(f"Stopped; at most the running {running} lost.")
        onward = {"resume": shlex.join(["s2e", *args.argv])}
    else:
        trial = study.best_trial
        values = ", ".join(f"{n} {v:.4g}" for n, v in trial.params.items() if n != "R.n_epochs")
        print(f"Best of {args.trials} trials: trial {trial.number}, {args.metric} "
              f"{trial.value:.4f} ({values})")  # fmt: skip
        picked = recommend(study).trial
        if picked != trial.number:
            print(f"Its value is partly luck. Recommended: trial {picked}, the best after "
                  "smoothing over similar trials: s2e evaluate and export use it.")  # fmt: skip
        line = _with_option(args.argv, "--trials", 2 * args.trials)
        onward = {"search on": shlex.join(["s2e", *line])}
    which = _common.study_options(args, study)
    root = f" --data-root {shlex.quote(str(args.data_root))}" if args.data_root else ""
    steps = {
        **onward,
        "where it stands": f"s2e status {which}",
        "compare on test data": f"s2e evaluate {which}{root}",
    }
    _common.print_next_steps(args, study, steps)


def _with_option(argv: Sequence[str], option: str, value: object) -> list[str]:
    """Return the command line with another value of an option."""
    line = list(argv)
    if option in line:
        line[line.index(option) + 1] = str(value)
        return line
    return [*(a for a in line if not a.startswith(f"{option}=")), option, str(value)]
