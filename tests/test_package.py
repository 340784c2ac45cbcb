"""The package imports quickly and quietly, and exports documented names."""

import subprocess
import sys

import optuna_s2e


def test_import_is_light_and_warns_about_nothing() -> None:
    heavy = ["torch", "torchvision", "plotly", "matplotlib", "optuna_dashboard", "sklearn", "PIL"]
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "import optuna_s2e, optuna_s2e.storages, optuna_s2e.parallel\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_exist_and_are_sorted() -> None:
    assert sorted(optuna_s2e.__all__) == optuna_s2e.__all__
    for name in optuna_s2e.__all__:
        assert getattr(optuna_s2e, name).__doc__


def test_training_without_torch_names_the_install_command() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try: import optuna_s2e.coteaching\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "optuna-s2e[coteaching]"' in out.stdout
