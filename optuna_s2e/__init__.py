"""optuna_s2e: search sample-selection schedules, and anything else, with Optuna."""

from importlib import import_module

TYPE_CHECKING = (
    False  # true for a type checker; importing `typing` takes longer than all else here
)
if TYPE_CHECKING:
    from optuna_s2e.analysis import Generation, Recommendation, generations, recommend, replay
    from optuna_s2e.classifier import NoisyLabelClassifier
    from optuna_s2e.distributions import simplex_params, suggest_simplex
    from optuna_s2e.parallel import RayExecutor, optimize_batch
    from optuna_s2e.sampler import S2ESampler
    from optuna_s2e.schedules import (
        Schedule,
        ScheduleSpace,
        coteaching_schedule,
        standard_schedule,
        suggested_schedule,
        table1_schedule,
    )
    from optuna_s2e.storages import open_storage

    __version__: str

__all__ = [
    "Generation",
    "NoisyLabelClassifier",
    "RayExecutor",
    "Recommendation",
    "S2ESampler",
    "Schedule",
    "ScheduleSpace",
    "coteaching_schedule",
    "generations",
    "open_storage",
    "optimize_batch",
    "recommend",
    "replay",
    "simplex_params",
    "standard_schedule",
    "suggest_simplex",
    "suggested_schedule",
    "table1_schedule",
]

# the last one loads torch and scikit-learn, and is looked at last
_ROOMS = [
    "distributions", "schedules", "storages", "sampler", "analysis", "parallel", "classifier"
]  # fmt: skip

if not TYPE_CHECKING:  # a type checker would take any name for a public one

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used: `s2e --help` uses none, and is quick."""
        if name == "__version__":
            return _version()
        if name in __all__:
            doors = (import_module(f"{__name__}.{room}") for room in _ROOMS)
            globals()[name] = next(getattr(d, name) for d in doors if name in d.__all__)
            return globals()[name]
        if name in _ROOMS:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("optuna-s2e")  # pyproject.toml says it
    except PackageNotFoundError:  # a checkout that is not installed
        return "0+not.installed"
