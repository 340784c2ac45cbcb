"""The recipes of docs/launch: their commands are ours, their parts fit, no password shows."""

import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
import yaml
from optuna.trial import TrialState
from processes import PATIENCE, Command

from optuna_s2e import S2ESampler, open_storage
from optuna_s2e.cli import main
from optuna_s2e.cli._main import make_parser

LAUNCH = Path(__file__).parent.parent / "docs" / "launch"
MANIFESTS = sorted((LAUNCH / "kubernetes").glob("*.yaml"))
COMPOSE = LAUNCH / "compose" / "compose.yaml"
UNITS = sorted((LAUNCH / "systemd").glob("*.service"))
SBATCH = LAUNCH / "slurm" / "search.sbatch"
SECRETS = {"PGPASSWORD", "S2E_DASHBOARD_PASSWORD", "POSTGRES_PASSWORD"}


def documents(*kinds: str) -> list[dict[str, Any]]:
    """Return the Kubernetes objects of these kinds; all without one."""
    found = [d for path in MANIFESTS for d in yaml.safe_load_all(path.read_text())]
    return [d for d in found if not kinds or d["kind"] in kinds]


def containers() -> list[dict[str, Any]]:
    pods = documents("Job", "Deployment", "StatefulSet")
    return [c for d in pods for c in d["spec"]["template"]["spec"]["containers"]]


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def unit(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))


def shell_commands(text: str) -> list[list[str]]:
    """Return the arguments of the `s2e` commands of a shell script or a page."""
    lines = re.findall(r"\bs2e ((?:search|worker|status|dashboard) [^;>\n`]*)", text)
    return [shlex.split(line.replace('"${study[@]}"', "--storage U --study-name N"))
            for line in lines]  # fmt: skip


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Yield every `s2e` command line of the recipes, with where it is from."""
    for container in containers():
        if "optuna-s2e" in container["image"]:
            yield f"kubernetes {container['name']}", container["args"]
    for name, service in services().items():
        if service["image"] == "optuna-s2e":
            yield f"compose {name}", service["command"]
    for path in UNITS:
        program, *arguments = shlex.split(unit(path)["ExecStart"])
        assert program.endswith("/bin/s2e")
        yield f"systemd {path.stem}", arguments
    for path in (SBATCH, LAUNCH / "README.md"):
        for arguments in shell_commands(path.read_text()):
            yield f"{path.name} {arguments[0]}", arguments


COMMANDS = list(command_lines())


def test_each_recipe_has_its_commands() -> None:
    names = [name for name, _ in COMMANDS]
    assert {
        *("kubernetes search", "kubernetes worker", "kubernetes dashboard"),
        *("compose search", "compose worker", "compose dashboard"),
        *("systemd s2e-worker@", "systemd s2e-dashboard"),
        *("search.sbatch search", "search.sbatch worker", "search.sbatch status"),
    } <= set(names)


@pytest.mark.parametrize(("name", "arguments"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_a_command_line_is_one_of_ours_without_a_password(name: str, arguments: list[str]) -> None:
    args = make_parser().parse_args(arguments)
    assert args.storage != make_parser().parse_args(["status"]).storage  # not SQLite by default
    assert not re.search(r"://[^/@]*:[^/@]*@", args.storage)
    if args.command == "dashboard":  # nobody may type
        assert args.password
        assert args.no_browser


def test_the_parts_of_a_recipe_name_the_same_storage_and_study() -> None:
    for recipe in ("kubernetes", "compose"):
        parsed = [make_parser().parse_args(a) for name, a in COMMANDS if name.startswith(recipe)]
        (url,) = {args.storage for args in parsed}
        assert len({args.study_name for args in parsed if args.command != "dashboard"}) == 1
        hosts = {d["metadata"]["name"] for d in documents("Service")} | set(services())
        assert re.fullmatch(r"postgresql://s2e@([\w-]+)/s2e", url)[1] in hosts  # type: ignore[index]


def test_kubernetes_takes_the_passwords_from_one_secret_that_the_page_makes() -> None:
    page = (LAUNCH / "README.md").read_text()
    assert not documents("Secret")
    taken = set()
    for container in containers():
        for entry in container["env"]:
            if entry["name"] in SECRETS:
                reference = entry["valueFrom"]["secretKeyRef"]
                assert reference["name"] == "s2e"
                taken.add(reference["key"])
        assert any(entry["name"] in SECRETS for entry in container["env"])
    assert taken == {"PGPASSWORD", "S2E_DASHBOARD_PASSWORD"}
    assert "kubectl create secret generic s2e --from-env-file=" in page
    assert all(f"{key}=" in page for key in taken)


def test_kubernetes_selectors_ports_and_volumes_fit() -> None:
    pods = {}
    for document in documents("Deployment", "StatefulSet"):
        labels = document["spec"]["template"]["metadata"]["labels"]
        assert document["spec"]["selector"]["matchLabels"] == labels
        (container,) = document["spec"]["template"]["spec"]["containers"]
        pods[labels["app"]] = {port["containerPort"] for port in container["ports"]}
        claims = document["spec"].get("volumeClaimTemplates", [])
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {claim["metadata"]["name"] for claim in claims}
    for service in documents("Service"):
        ports = {port["port"] for port in service["spec"]["ports"]}
        assert ports == pods[service["spec"]["selector"]["app"]]
    (dashboard,) = (a for name, a in COMMANDS if name == "kubernetes dashboard")
    assert make_parser().parse_args(dashboard).port in pods["s2e-dashboard"]
    (stateful,) = documents("StatefulSet")
    assert stateful["spec"]["serviceName"] in {d["metadata"]["name"] for d in documents("Service")}


def test_what_waits_for_a_trial_waits_longer_than_a_worker_takes() -> None:
    grace = make_parser().parse_args(["worker"]).grace
    (pod,) = (
        d["spec"]["template"]["spec"]
        for d in documents("Job")
        if d["metadata"]["name"] == "s2e-workers"
    )
    assert pod["restartPolicy"] == "OnFailure"
    assert pod["terminationGracePeriodSeconds"] > grace
    worker = services()["worker"]
    assert worker["restart"] == "on-failure"
    assert int(worker["stop_grace_period"].removesuffix("s")) > grace
    service = unit(LAUNCH / "systemd" / "s2e-worker@.service")
    assert service["Restart"] == "on-failure"
    assert int(service["TimeoutStopSec"]) > grace
    signal = re.search(r"--signal=B:TERM@(\d+)", SBATCH.read_text())
    assert signal is not None
    assert int(signal[1]) > grace


def test_compose_takes_the_passwords_from_its_environment_file() -> None:
    known = set(re.findall(r"^(\w+)=$", (COMPOSE.parent / "env.example").read_text(), re.M))
    for service in services().values():
        secrets = {k: v for k, v in service["environment"].items() if k in SECRETS}
        assert secrets
        for value in secrets.values():
            variable = re.fullmatch(r"\$\{(\w+):\?set it in \.env\}", value)
            assert variable is not None
            assert variable[1] in known
    for service in services().values():
        assert set(service.get("depends_on", {})) <= set(services())
        volumes = {mount.partition(":")[0] for mount in service["volumes"]}
        assert volumes <= set(yaml.safe_load(COMPOSE.read_text())["volumes"])
    assert services()["dashboard"]["ports"] == ["127.0.0.1:8080:8080"]  # no TLS: this machine only


def test_the_image_holds_what_the_package_is_built_from() -> None:
    recipe = (LAUNCH / "Dockerfile").read_text()
    copied = [w for line in re.findall(r"^COPY (.*) \S+$", recipe, re.M) for w in line.split()]
    let_in = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert sorted(copied) == sorted(line[1:] for line in let_in if line.startswith("!"))
    root = LAUNCH.parent.parent
    assert all((root / name).exists() for name in copied)
    build = services()["worker"]["build"]
    assert (COMPOSE.parent / build["context"]).resolve() == root
    assert (root / build["dockerfile"]).samefile(LAUNCH / "Dockerfile")
    assert re.search(r'^ENTRYPOINT \["tini", "--", "s2e"\]$', recipe, re.M)
    extras = re.search(r"\.\[([\w,]+)\]", recipe)
    project = (root / "pyproject.toml").read_text()
    assert extras is not None
    assert all(f"\n{extra} = [" in project for extra in extras[1].split(","))


@pytest.mark.parametrize("document", documents(), ids=lambda d: d["metadata"]["name"])
def test_a_manifest_follows_the_schema_of_kubernetes(document: dict[str, Any]) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="the test extra brings it")
    schemas.validate(document, schemas.latest_version(), strict=True)  # unknown keys are refused
    with pytest.raises(schemas.ValidationError):
        schemas.validate(document | {"speck": {}}, schemas.latest_version(), strict=True)


def test_docker_compose_accepts_the_file() -> None:
    command = ["docker", "compose"]
    if (
        shutil.which("docker") is None
        or subprocess.run([*command, "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")
    env = os.environ | {"PGPASSWORD": "x", "S2E_DASHBOARD_PASSWORD": "y"}
    subprocess.run([*command, "-f", COMPOSE, "config", "--quiet"], check=True, env=env)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_a_unit(path: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    here = tmp_path / path.name.replace("@", "@1")
    program = "/opt/s2e/bin/s2e"
    assert program in path.read_text()
    here.write_text(path.read_text().replace(program, shutil.which("true") or ""))
    said = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "")


def trials(url: str, name: str) -> list[TrialState]:
    study = optuna.load_study(study_name=name, storage=open_storage(url))
    return [trial.state for trial in study.get_trials(deepcopy=False)]


S2E = """#!/bin/bash
# `s2e` where the test runs: asks for the command, waits for its end, ends with its exit code
call=$(mktemp)
mkfifo "$call.code"
printf '%s\\0' "$@" > "$call"
mv "$call" "$call.asked"
exit "$(cat "$call.code")"
"""


def run_what_is_asked(folder: Path, tasks: list[subprocess.Popen[bytes]]) -> dict[str, Command]:
    """Run what the tasks ask of `s2e` until they end, in processes that have imported all.

    Returns:
        The last process of each sub-command.
    """
    running: dict[Path, Command] = {}
    last: dict[str, Command] = {}
    end = time.monotonic() + PATIENCE
    while any(task.poll() is None for task in tasks):
        for asked in folder.glob("*.asked"):
            argv = asked.read_text().split("\0")[:-1]
            asked.unlink()
            running[asked.with_suffix(".code")] = last[argv[0]] = Command(*argv)
        for code, command in list(running.items()):
            if not command.is_alive():
                code.write_text(str(running.pop(code).wait()))  # the task waits to read it
        assert time.monotonic() < end, [command.errors for command in last.values()]
        time.sleep(0.02)
    return last


@pytest.mark.postgres
def test_the_tasks_of_the_job_array_search_together(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task as SLURM starts it: with bash, and its number in the environment."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    short = "--trials 4 --epochs 2 --no-noise-rate-estimate --no-dashboard"
    text = SBATCH.read_text().replace("--trials 60", short).replace("sleep 5", "sleep 1")
    script = Path("search.sbatch")
    script.write_text(text.replace("s2e worker", "s2e worker --no-dashboard"))
    s2e, calls = Path("bin/s2e"), Path("calls")
    s2e.parent.mkdir()
    calls.mkdir()
    s2e.write_text(S2E)
    s2e.chmod(0o755)
    env = os.environ | {
        "PATH": f"{s2e.parent.resolve()}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(calls.resolve()), "S2E_STORAGE": postgres_url,
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            ["bash", script], env=env | {"SLURM_ARRAY_TASK_ID": n}, start_new_session=True
        )
        for n in ("2", "1")  # the worker comes first, and waits
    ]
    try:
        commands = run_what_is_asked(calls, tasks)
    finally:
        for task in tasks:
            with suppress(ProcessLookupError):  # it ended
                os.killpg(task.pid, signal.SIGKILL)
    assert [task.wait() for task in tasks] == [0, 0], [c.errors for c in commands.values()]
    assert set(commands) == {"search", "status", "worker"}
    # it works on the study, or came when that was complete
    assert "tudy 'digits-sym50'" in commands["worker"].printed
    assert trials(postgres_url, "digits-sym50").count(TrialState.COMPLETE) >= 4


@pytest.mark.postgres
def test_the_password_comes_from_the_environment(
    own_postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = own_postgres_url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE ROLE s2e LOGIN PASSWORD 'hush @1'")
        connection.execute("CREATE DATABASE s2e OWNER s2e")
        (row,) = connection.execute("SHOW hba_file").fetchall()
        rules = Path(row[0])
        rules.write_text("local all s2e scram-sha-256\n" + rules.read_text())
        connection.execute("SELECT pg_reload_conf()")
    url = f"postgresql://s2e@/s2e?host={plain.partition('host=')[2]}"
    said = []
    for password in ("wrong", "hush @1"):
        monkeypatch.setenv("PGPASSWORD", password)
        assert main(["status", "--storage", url]) == 2
        said.append(capsys.readouterr().err)
        assert "hush" not in said[-1]
    assert "password authentication failed" in said[0]
    assert "the database is empty" in said[1]


OBJECTIVE = """
def parabola(trial):
    return (trial.suggest_float("x", -1, 1) - 0.3) ** 2
"""


def test_submitit_starts_workers_that_search_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="the test extra brings it")
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OBJECTIVE)
    text = (LAUNCH / "slurm" / "submit_workers.py").read_text()
    Path("submit_workers.py").write_text(text.replace('"worker",', '"worker", "--no-dashboard",'))
    url = "sqlite:///s2e.db"

    def run(*options: str) -> None:
        launch = ["submit_workers.py", "--cluster", "local", "--storage", url]
        monkeypatch.setattr("sys.argv", [*launch, "--study-name", "own", *options])
        runpy.run_path("submit_workers.py", run_name="__main__")

    with pytest.raises(SystemExit, match=r"exit codes \[2\]"):  # it has made the study
        run("--workers", "1", "--objective", "own:missing", "--trials", "9")
    study = optuna.load_study(study_name="own", storage=open_storage(url), sampler=S2ESampler())
    study.optimize(lambda trial: (trial.suggest_float("x", -1, 1) - 0.3) ** 2, n_trials=6)
    run("--workers", "2", "--objective", "own:parabola", "--trials", "15")  # goes on
    assert 15 <= trials(url, "own").count(TrialState.COMPLETE) <= 17
    assert abs(study.best_params["x"] - 0.3) < 0.3
