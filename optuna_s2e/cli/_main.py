"""The `s2e` command: search, worker, status, evaluate, export, dashboard.

Each sub-command imports what it needs when it runs, so that `s2e status` works where PyTorch is
not installed. Errors that a user can mend are one line and exit code 2.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optuna_s2e._attributes import OBJECTIVE_KEY
from optuna_s2e.cli import _dashboard as cli_dashboard
from optuna_s2e.cli import _worker as cli_worker
from optuna_s2e.cli._worker import EXIT_CODES
from optuna_s2e.storages import hide_passwords

if TYPE_CHECKING:
    import optuna

    from optuna_s2e import Schedule

EXIT_MISMATCH, EXIT_ERROR = 1, 2

_SEARCH_HELP = """\
Search the schedule R(t) of Co-teaching on data with wrong labels.

Each trial trains two networks under one schedule and returns their validation error. All state
is in the storage: the same command again resumes, the same command elsewhere at the same time
adds a worker, Ctrl-C loses at most the running trial. With --batch one process trains K trials
at a time instead.

    s2e search --data digits --noise symmetric --noise-rate 0.5 --trials 60
    s2e search --data mnist --data-root ~/data --noise pair --noise-rate 0.45 --epochs 200 \\
        --storage postgresql+psycopg://me@db/s2e --study-name mnist-pair45
"""
_EVALUATE_HELP = """\
Retrain the schedule of a search with fresh seeds, beside Standard training (R = 1) and
Co-teaching's fixed schedule (Eq 1 with the true noise rate), on the test data, which the search
never sees. Writes evaluation.json, evaluation.png and schedule.json.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    0, 1 (--verify failed), 2 (error), 130 (Ctrl-C), 143 (SIGTERM).
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(argv)
    args.argv = argv
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return EXIT_CODES["SIGINT"]
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if args.traceback:
            raise
        line = hide_passwords(" ".join(str(error).split()))
        line = line.replace('on_config_change="adopt"', "--on-config-change adopt")
        print(f"s2e {args.command}: error: {line}", file=sys.stderr)
        return EXIT_ERROR
    return code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--storage", default="sqlite:///s2e.db", metavar="URL",
        help="where the study is kept (default %(default)s)",
    )  # fmt: skip
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--study-name", metavar="NAME", help="default: the storage's only study")
    training = argparse.ArgumentParser(add_help=False)
    training.add_argument(
        "--data-root", type=Path, metavar="DIR",
        help="folder of torchvision's data sets; missing ones are downloaded into it",
    )  # fmt: skip
    training.add_argument(
        "--device", default="auto", help="auto (CUDA where there is any), cpu, cuda, cuda:1, ..."
    )
    training.add_argument(
        "--threads", type=int, default=1, metavar="N",
        help="CPU threads of this process (default 1: small networks gain nothing from more, "
        "and workers share the cores)",
    )  # fmt: skip

    parser = argparse.ArgumentParser(
        prog="s2e", description="Search sample-selection schedules for learning with noisy labels."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str, *parents: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text.split("\n\n")[0].replace("\n", " "), description=text,
            parents=[common, *parents], formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        return sub

    _add_search_options(add("search", _search, _SEARCH_HELP, training))
    worker = add("worker", _worker, cli_worker.HELP, named, training)
    cli_worker.add_options(worker)
    _add_reporter_options(worker)
    status = add("status", _status, "Show where a search stands.", named)
    status.add_argument(
        "--verify", action="store_true",
        help="recompute every theta from the recorded draws; exit code 1 at a mismatch",
    )  # fmt: skip
    picked = argparse.ArgumentParser(add_help=False)
    picked.add_argument(
        "--rule", default="smoothed", choices=["smoothed", "theta", "best"],
        help="which schedule: of the trial that is best after smoothing out the luck of single "
        "trainings (default), the mean of p_theta, or the best trial",
    )  # fmt: skip
    evaluate = add("evaluate", _evaluate, _EVALUATE_HELP, named, picked, training)
    evaluate.add_argument("--repeats", type=int, default=5, help="seeds per schedule (default 5)")
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the seeds (default 0)")
    evaluate.add_argument(
        "--out", type=Path, metavar="DIR", help="output folder (default: the study's name)"
    )
    export = add("export", _export, "Write the schedule of a search as JSON.", named, picked)
    export.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    cli_dashboard.add_options(add("dashboard", cli_dashboard.run, cli_dashboard.HELP))
    return parser


def _add_reporter_options(parser: argparse.ArgumentParser) -> None:
    shown = parser.add_argument_group("dashboard")
    shown.add_argument(
        "--no-dashboard", action="store_true",
        help="draw nothing for `s2e dashboard` (it is drawn if optuna-dashboard is installed)",
    )  # fmt: skip
    cli_dashboard.add_artifact_dir(shown)


def _add_search_options(search: argparse.ArgumentParser) -> None:
    search.add_argument("--study-name", metavar="NAME", help="default: from data and noise")
    data = search.add_argument_group("data")
    data.add_argument(
        "--data", default="digits", metavar="NAME",
        help="digits (embedded), mnist, cifar10, cifar100 or a file.npz (default %(default)s)",
    )  # fmt: skip
    data.add_argument(
        "--noise", default="symmetric", choices=["symmetric", "pair", "none"],
        help="how training labels are made wrong (default %(default)s)",
    )  # fmt: skip
    data.add_argument("--noise-rate", type=float, default=0.5, metavar="E", help="in [0, 1)")
    data.add_argument(
        "--published-noise", action="store_true",
        help="the labels of the Co-teaching and S2E papers' code, bit for bit",
    )  # fmt: skip
    data.add_argument(
        "--validation", default="clean", choices=["clean", "noisy"],
        help="labels of the validation part, split off the training data (default %(default)s)",
    )  # fmt: skip
    trial = search.add_argument_group("training")
    trial.add_argument("--network", default="mlp", help="mlp, cnn2, cnn7, .. (default mlp)")
    trial.add_argument("--epochs", type=int, default=40, metavar="T")
    trial.add_argument("--batch-size", type=int, metavar="B", help="default: that of the data")
    trial.add_argument("--learning-rate", type=float, metavar="LR", help="default: as above")
    trial.add_argument(
        "--metric", default="validation_error", choices=["validation_error", "validation_loss"],
        help="what a trial returns; validation_loss (cross-entropy) prefers schedules that do "
        "not resist pair noise (default %(default)s)",
    )  # fmt: skip
    method = search.add_argument_group("search")
    method.add_argument(
        "--space", choices=["eq1", "table1"],
        help="eq1: Co-teaching's formula, 3 parameters; table1: the paper's, 19 (default eq1)",
    )  # fmt: skip
    method.add_argument(
        "--trials", type=int, default=60, metavar="N",
        help="completed trials in all, earlier ones and other workers' included",
    )  # fmt: skip
    method.add_argument("--population-size", type=int, default=6, metavar="K")
    method.add_argument(
        "--batch", action="store_true",
        help="train the K trials of a generation as one: the same thetas whatever dies, and one "
        "process at a time (docs/parallel.md)",
    )  # fmt: skip
    method.add_argument(
        "--estimator", default="surrogate",
        help="how theta moves: surrogate (Newton on a model of the loss over R(t), the default), "
        "natural, newton (the paper's), cubic or gradient",
    )  # fmt: skip
    method.add_argument(
        "--reuse", type=int, metavar="N",
        help="earlier updates whose draws take part again; 0 is the paper's (default: the "
        "estimator's)",
    )  # fmt: skip
    method.add_argument("--seed", type=int, default=0, help="of data, trials and search")
    method.add_argument(
        "--on-config-change", default="refuse", choices=["refuse", "adopt"],
        help="if the study was searched with other settings (default %(default)s)",
    )  # fmt: skip
    _add_reporter_options(search)


# --- search --------------------------------------------------------------------------------


def _search(args: argparse.Namespace) -> int:
    from optuna_s2e import S2ESampler
    from optuna_s2e.coteaching import CoteachingObjective, load_data
    from optuna_s2e.parallel import Search

    if args.trials < 1:
        raise ValueError(f"--trials must be at least 1, but got {args.trials}.")
    sampler = S2ESampler(
        population_size=args.population_size,
        estimator=args.estimator,
        reuse=args.reuse,
        seed=args.seed,
        on_config_change=args.on_config_change,
    )
    cli_worker.set_threads(args.threads)
    reporter = cli_worker.reporter(args, args.trials)
    data = load_data(
        args.data,
        root=args.data_root,
        noise=args.noise,
        noise_rate=args.noise_rate,
        seed=args.seed,
        validation=args.validation,
        published_noise=args.published_noise,
    )
    objective = CoteachingObjective(
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
    storage = cli_worker.open_for_work(args.storage)  # last: an error writes nothing
    name = args.study_name or f"{Path(args.data).stem}-{args.noise}-{args.noise_rate:g}"
    study = _open_study(storage, name, objective.settings, sampler)
    sampler.check(study)
    if reporter is not None:
        line = _with_option(args.argv, "--storage", args.storage)
        reporter.record_command(study, ["s2e", *line])
    Search(sampler.settings, args.seed, args.trials).write(study)
    done = cli_worker.n_complete(study)
    if done:
        print(f"Resuming study {study.study_name!r}: {done} trials are complete.")
    callbacks = [reporter] if reporter is not None else []
    search = cli_worker.optimize_in_batches if args.batch else cli_worker.optimize
    stopped = search(study, objective, args.trials, callbacks)
    _print_next_steps(study, args, bool(stopped))
    return EXIT_CODES.get(stopped, 0)


def _open_study(storage: Any, name: str, settings: Any, sampler: Any) -> optuna.Study:
    """Create or resume a study; refuse one of another objective."""
    import optuna

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
    if not isinstance(recorded, dict):
        return f"its settings are damaged ({recorded!r})"
    found = []
    for key in sorted({*own, *recorded}):
        a, b = own.get(key), recorded.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and a != b:
            found.append(_differences(a, b, f"{prefix}{key}."))
        elif a != b:
            found.append(f"{prefix}{key} is {a!r}, there {b!r}")
    return ", ".join(found)


def _print_next_steps(study: optuna.Study, args: argparse.Namespace, interrupted: bool) -> None:
    where = f"--storage {shlex.quote(args.storage)}"
    which = f"{where} --study-name {shlex.quote(study.study_name)}"
    root = f" --data-root {shlex.quote(str(args.data_root))}" if args.data_root else ""
    if interrupted:
        what = "trials are" if args.batch else "trial is"
        print(f"Stopped; at most the running {what} lost.")
    else:
        trial = study.best_trial
        values = ", ".join(f"{n} {v:.4g}" for n, v in trial.params.items() if n != "R.n_epochs")
        print(f"Best of {args.trials} trials: trial {trial.number}, {args.metric} "
              f"{trial.value:.4f} ({values})")  # fmt: skip
    steps = {
        "compare on test data": f"s2e evaluate {which}{root}",
        "where it stands": f"s2e status {which}",
        **_looking_steps(args.storage, study.study_name),
    }
    if interrupted:
        steps["resume"] = shlex.join(["s2e", *args.argv])
    else:
        steps["search on"] = shlex.join(
            ["s2e", *_with_option(args.argv, "--trials", 2 * args.trials)]
        )
    _print_steps(steps)


def _looking_steps(storage: str, study_name: str) -> dict[str, str]:
    where = f"--storage {shlex.quote(storage)}"
    which = f"{where} --study-name {shlex.quote(study_name)}"
    return {
        "look at it": f"s2e dashboard {where}",
        "take the schedule": f"s2e export {which} --out schedule.json",
    }


def _print_steps(steps: dict[str, str]) -> None:
    print("Next:")
    for what, command in steps.items():
        print(f"  {what + ':':22}{hide_passwords(command)}")


def _with_option(argv: Sequence[str], option: str, value: object) -> list[str]:
    """Return the command line with another value of an option."""
    line = list(argv)
    if option in line:
        line[line.index(option) + 1] = str(value)
        return line
    return [*(a for a in line if not a.startswith(f"{option}=")), option, str(value)]


def _best(study: optuna.Study) -> str:
    best = study.best_trial
    return f"best {best.value:.4f} (trial {best.number})"


# --- the other commands ----------------------------------------------------------------------


def _worker(args: argparse.Namespace) -> int:
    return cli_worker.join(_load_study(args, cli_worker.open_for_work), args)


def _load_study(args: argparse.Namespace, opened: Any = None) -> optuna.Study:
    import optuna

    from optuna_s2e import open_storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = (opened or open_storage)(args.storage)
    names = optuna.get_all_study_names(storage)
    name = args.study_name or (names[0] if len(names) == 1 else None)
    if name not in names:
        there = ", ".join(map(repr, sorted(names)[:20])) or "no studies"
        asked = f"Study {name!r} does not exist" if name else "--study-name is needed"
        raise ValueError(f"{asked}: the storage holds {there}.")
    return optuna.load_study(study_name=name, storage=storage)


def _recommended(study: optuna.Study, rule: str) -> tuple[Schedule, str]:
    """Return a schedule to use and a line that says where it comes from."""
    from optuna_s2e import recommend

    picked = recommend(study, rule)
    if picked.schedule is None:
        raise ValueError(f"The trials of study {study.study_name!r} hold no schedules.")
    source = "theta's mean" if picked.trial is None else f"trial {picked.trial}"
    low, high = picked.interval
    return picked.schedule, (
        f"Schedule: {source} (rule: {picked.rule}), expected {picked.expected_loss:.4f} "
        f"[{low:.4f}, {high:.4f}]"
    )


def _status(args: argparse.Namespace) -> int:
    from optuna_s2e.analysis import Snapshot, describe, verify
    from optuna_s2e.parallel import Search

    study = _load_study(args)
    try:
        Search.read(study)
    except ValueError as error:  # status works on damaged studies, too
        print(error)
    snapshot = Snapshot.of(study)
    print(describe(snapshot))
    if not args.verify:
        return 0
    sound, message = verify(snapshot)
    print(message)
    return 0 if sound else EXIT_MISMATCH


def _evaluate(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from optuna_s2e.coteaching import (
        CoteachingObjective,
        evaluate_schedules,
        evaluation_table,
        fixed_schedules,
        save_evaluation,
    )

    study = _load_study(args)
    settings = study.user_attrs.get(OBJECTIVE_KEY)
    if not isinstance(settings, dict):
        raise ValueError(
            f"Study {study.study_name!r} was not made by `s2e search`; evaluate its schedules "
            "with optuna_s2e.coteaching.evaluate_schedules."
        )
    schedule, source = _recommended(study, args.rule)
    print(source)
    cli_worker.set_threads(args.threads)
    objective = CoteachingObjective.from_settings(
        settings, data_root=args.data_root, device=args.device
    )
    schedules = {
        **fixed_schedules(objective.space.n_epochs, objective.data.noise_rate or 0.0),
        "searched": schedule,
    }
    with tqdm(unit="epoch", desc="retraining", mininterval=cli_worker.interval()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        evaluations = evaluate_schedules(
            {name: s.keep_rates for name, s in schedules.items()},
            objective.data,
            network=objective.network,
            config=objective.config,
            n_repeats=args.repeats,
            seed=args.seed,
            device=args.device,
            progress=progress,
        )
    folder = args.out or Path(study.study_name.replace("/", "_"))
    save_evaluation(folder, schedules, evaluations, settings=settings, study_name=study.study_name)
    print(evaluation_table(evaluations))
    print(f"Picture: {folder / 'evaluation.png'}; numbers: {folder / 'evaluation.json'}; "
          f"schedule: {folder / 'schedule.json'}")  # fmt: skip
    _print_steps(_looking_steps(args.storage, study.study_name))
    return 0


def _export(args: argparse.Namespace) -> int:
    schedule, source = _recommended(_load_study(args), args.rule)
    schedule.save(args.out)
    rates = np.array2string(schedule.keep_rates, precision=3, threshold=8, edgeitems=3)
    print(f"{source}\nR(t) = {rates}, written to {args.out}")
    return 0
