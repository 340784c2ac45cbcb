"""Use the package where nothing but its own dependencies is installed: no extra, no torch.

`.ci/steps install` runs this with the interpreters of empty environments, outside the checkout.
"""

import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import optuna

from optuna_s2e import S2ESampler, ScheduleSpace, open_storage, recommend, replay

EXTRAS = ("torch", "sklearn", "pandas", "plotly", "optuna_dashboard", "psycopg", "grpc")


def s2e(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command `s2e` of this environment."""
    command = Path(sysconfig.get_path("scripts"), "s2e")
    return subprocess.run([command, *arguments], capture_output=True, text=True)


def main() -> None:
    """Search, look at the search, and ask for what is not installed."""
    assert not [name for name in EXTRAS if importlib.util.find_spec(name)]
    assert Path(optuna.__file__).is_relative_to(sys.prefix)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/s2e.db"
        study = optuna.create_study(
            storage=open_storage(url), study_name="bare", sampler=S2ESampler(seed=0)
        )
        space = ScheduleSpace(n_epochs=10)
        study.optimize(lambda trial: float(space.suggest(trial).keep_rates.mean()), n_trials=14)
        assert recommend(study).schedule.n_epochs == 10
        assert len(replay(study)) >= 2
        status = s2e("status", "--storage", url, "--verify")
        assert status.returncode == 0, status.stderr
        for command, package in {
            ("fit", "digits", "--no-search", "--out", f"{folder}/model"): "[coteaching]",
            ("search", "--data", "digits", "--storage", url): "[coteaching]",
            ("dashboard", "--storage", url): "[dashboard]",
        }.items():
            said = s2e(*command)
            assert said.returncode == 2, (command, said)
            assert said.stderr.count("\n") == 1, (command, said)
            assert f'pip install "optuna-s2e{package}"' in said.stderr, (command, said)
    doctor = s2e("doctor")
    assert 'pip install "optuna-s2e[coteaching]"' in doctor.stdout, doctor
    print(f"Python {sys.version.split()[0]}: {status.stdout.splitlines()[0]}")


if __name__ == "__main__":
    main()
