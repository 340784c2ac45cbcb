"""Nothing that a database holds is executed, and no password is shown."""

import ast
import logging
import pickle
import re
import tracemalloc
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import optuna_s2e
from optuna_s2e import (
    S2ESampler,
    ScheduleSpace,
    generations,
    open_storage,
    optimize_batch,
    replay,
    suggest_simplex,
)
from optuna_s2e.cli._main import main

PACKAGE = Path(optuna_s2e.__file__).parent
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load",
    "optuna.load_pickle", "np.fromfile",
}  # fmt: skip


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return [(ast.unparse(call.func), call) for call in found]


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_no_module_can_execute_what_it_reads(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        else:
            continue
        # _detached.py makes sure that an exception of an objective can travel back to its driver
        assert not names & FORBIDDEN_MODULES or path.name == "_detached.py"
    for name, call in calls(tree):
        assert name not in FORBIDDEN_CALLS
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert keywords.get("shell") != "True"
        if name.endswith(".load") and name.startswith("np"):
            assert keywords.get("allow_pickle") == "False"
        if name in ("pickle.loads", "pickle.load"):  # only what it has pickled itself
            assert ast.unparse(call.args[0]).startswith("pickle.dumps(")
        if name.endswith("import_module"):  # what the command line names, nothing else
            named = ast.unparse(call.args[0])
            own = ("f'{__name__}.{room}'", "f'{__name__}.{name}'", "f'optuna_s2e.cli._{module}'")
            known = named in own or named.startswith(("'", "f'torchvision."))
            assert path.name == "_worker.py" or known


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


HOSTILE: list[Any] = [
    pickle.dumps(Bomb()).hex(),
    pickle.dumps(Bomb(), protocol=0).decode("latin1"),
    "__import__('pathlib').Path('exploded').touch()",
    "os:system",
    "../../../etc/passwd",
    "<script>alert(1)</script>",
    {"__reduce__": ["os.system", "touch exploded"]},
    {"v": 1, "trial": 0, "generation": 0, "seed": "$(touch exploded)", "settings": {}},
    [1] * 10_000,
    "x" * 1_000_000,
    10**300,
    None,
    True,
]


@pytest.mark.parametrize(
    ("url", "hostile"),
    # what is read from a trial is the same in all storages, and takes longest from a database
    [
        *(("journal:///s2e.log", h) for h in HOSTILE),
        *(("sqlite:///s2e.db", h) for h in HOSTILE[:3]),
    ],
    ids=lambda h: f"{type(h).__name__}-{str(h)[:12]}",
)
def test_hostile_attributes_are_inert(
    url: str, hostile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage(url)
    sampler = S2ESampler(population_size=2, estimator="natural", seed=0)
    study = optuna.create_study(study_name="s", storage=storage, sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", 0, 1)
        if trial.number in (1, 4):
            for key in ("s2e:draw", "s2e:worker", "s2e:failure", "s2e:driver", "failed_trial",
                        "coteaching:curves", "cma:optimizer", "retry_history"):  # fmt: skip
                storage.set_trial_system_attr(trial._trial_id, key, hostile)
            trial.set_user_attr("seed", hostile)
        return value

    study.optimize(objective, n_trials=7)
    for key in ("s2e:objective", "s2e:search"):
        study.set_user_attr(key, hostile)
    fresh = optuna.load_study(
        study_name="s",
        storage=storage,
        sampler=S2ESampler(population_size=2, estimator="natural", seed=0),
    )
    fresh.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(generations(fresh)) >= 4
    assert len(replay(fresh)) == len(generations(fresh))
    assert main(["status", "--storage", url]) == 0
    for command in (["worker"], ["evaluate"], ["export", "--out", "out.json"]):
        assert main([*command, "--storage", url]) in (0, 2)
    assert not Path("exploded").exists()
    assert not Path("out.json").exists()


SETTINGS_PATHS = [
    *(("data", key) for key in ("name", "noise", "noise_rate", "seed", "validation",
                                "n_validation", "published_noise")),
    *(("config", key) for key in ("batch_size", "learning_rate", "decay_start", "dtype")),
    *((key,) for key in ("version", "data", "config", "network", "n_epochs", "seed", "kind",
                         "metric", "prune")),
]  # fmt: skip


@pytest.mark.usefixtures("digits_are_read_once")
@pytest.mark.parametrize("path", SETTINGS_PATHS, ids=".".join)
def test_hostile_settings_of_an_objective_are_refused(path: tuple[str, ...]) -> None:
    from optuna_s2e.coteaching import CoteachingObjective, load_data

    settings = CoteachingObjective(load_data("digits"), n_epochs=2, device="cpu").settings
    assert settings is not None
    for hostile in (*HOSTILE, -1, 10**9, float("nan"), "mnits", [], {}):
        damaged: Any = {**settings, "data": dict(settings["data"]),
                        "config": dict(settings["config"])}  # fmt: skip
        inner = damaged[path[0]] if len(path) == 2 else damaged
        inner[path[-1]] = hostile
        try:
            objective = CoteachingObjective.from_settings(damaged, device="cpu", download=False)
        except (ValueError, OSError, ImportError):
            continue
        kept = objective.settings  # it took a default, or a value in range
        assert CoteachingObjective.from_settings(kept, device="cpu").settings == kept


ABSURD: dict[str, Callable[[optuna.Study], Any]] = {
    "K": lambda study: S2ESampler(population_size=10**9),
    "reuse": lambda study: S2ESampler(reuse=10**9),
    "epochs": lambda study: ScheduleSpace(10**9),
    "weights": lambda study: suggest_simplex(study.ask(), "w", 10**9),
    "batch": lambda study: optimize_batch(study, lambda t: 0.0, 10**9, batch_size=10**9),
    "attempts": lambda study: optimize_batch(study, lambda t: 0.0, 1, max_attempts=10**9),
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_sizes_are_refused_before_anything_is_allocated(case: str) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler())
    tracemalloc.start()
    with pytest.raises(ValueError, match="must be"):
        ABSURD[case](study)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


# --- passwords -------------------------------------------------------------------------------


@pytest.mark.postgres
def test_password_is_in_no_print_log_or_error(
    postgres_url: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from servers import ForgetfulProxy

    monkeypatch.chdir(tmp_path)
    proxy = ForgetfulProxy(postgres_url)
    url = proxy.url.replace("postgres:@", "postgres:hush-hush@").replace(
        "postgres@", "postgres:hush-hush@"
    )
    assert "hush-hush" in url
    with caplog.at_level(logging.DEBUG):
        search = ["search", "--epochs", "4", "--trials", "2", "--study-name", "s"]
        search += ["--no-noise-rate-estimate"]
        assert main([*search, "--storage", url]) == 0
        storage = open_storage(url, patience=0.2)
        study = optuna.load_study(study_name="s", storage=storage)
        proxy.forget_commit()
        study.set_user_attr("a", 1)
        assert main(["status", "--storage", url]) == 0
        assert main(["search", "--epochs", "5", "--study-name", "s", "--storage", url]) == 2
        proxy.close()
        storage._backend._backend.engine.dispose()  # type: ignore[attr-defined]
        with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
            study.set_user_attr("a", 1)
        assert main(["status", "--storage", url]) == 2
    printed = capsys.readouterr()
    shown = [printed.out, printed.err, caplog.text, str(caught.value), repr(storage)]
    shown += [str(caught.value.__cause__), repr(study)]
    attributes = {**study_attributes(postgres_url)}
    assert not any("hush-hush" in text for text in [*shown, str(attributes)])
    assert "***" in printed.out  # the commands that come next


def study_attributes(url: str) -> dict[str, Any]:
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    trials = [{**t.user_attrs, **t.system_attrs} for t in study.trials]
    return {"study": study.user_attrs, "trials": trials}


# --- roles -----------------------------------------------------------------------------------


@pytest.mark.postgres
def test_workers_and_readers_need_few_rights(postgres_url: str) -> None:
    def search(storage: Any) -> optuna.Study:
        sampler = S2ESampler(population_size=2, estimator="natural", seed=0)
        return optuna.create_study(
            study_name="s", storage=storage, sampler=sampler, load_if_exists=True
        )

    search(open_storage(postgres_url))  # makes the tables
    plain = postgres_url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(plain, autocommit=True) as owner:
        for statement in (
            "DROP ROLE IF EXISTS s2e_worker",
            "DROP ROLE IF EXISTS s2e_reader",
            "CREATE ROLE s2e_worker LOGIN",
            "CREATE ROLE s2e_reader LOGIN",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO s2e_worker",
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO s2e_worker",
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO s2e_reader",
        ):
            owner.execute(statement)  # type: ignore[arg-type]
    url = optuna_url(postgres_url, "s2e_worker")
    search(open_storage(url)).optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=5)
    reader_url = optuna_url(postgres_url, "s2e_reader")
    reader = optuna.load_study(study_name="s", storage=open_storage(reader_url))
    assert len(generations(reader)) == 3
    with pytest.raises(optuna.exceptions.StorageInternalError):
        reader.set_user_attr("a", 1)
    with psycopg.connect(plain, autocommit=True) as owner:
        for role in ("s2e_worker", "s2e_reader"):
            owner.execute(f"DROP OWNED BY {role}")  # type: ignore[arg-type]
            owner.execute(f"DROP ROLE {role}")  # type: ignore[arg-type]


def optuna_url(url: str, user: str) -> str:
    import sqlalchemy

    return sqlalchemy.make_url(url).set(username=user).render_as_string(hide_password=False)


# --- what is installed -----------------------------------------------------------------------


def test_every_package_that_ci_installs_is_pinned() -> None:
    lines = Path(__file__).parents[1].joinpath("constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if re.fullmatch(r"[\w-]+==[\w.]+", line)}
    assert len(pinned) == len([line for line in lines if not line.startswith("#")])
    seen: set[tuple[str, str]] = set()
    to_see = [("optuna-s2e", extra) for extra in ("", "dev", "docs", "ray")]
    while to_see:
        name, extra = to_see.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        assert name in {*pinned, "optuna-s2e", "setuptools"}  # which comes with the environment
        try:
            required = requires(name) or []
        except PackageNotFoundError:  # of an extra that is not installed here
            continue
        for requirement in map(Requirement, required):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                found = canonicalize_name(requirement.name)
                to_see += [(found, e) for e in ("", *requirement.extras)]
