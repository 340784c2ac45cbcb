"""Says that a study goes on with another sampler than the one it was searched with.

Optuna does not record who drew a trial. S2E's draws have records; the trials that
`optimize_batch` and `work` run for other samplers carry the sampler's name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_s2e import _optuna
from optuna_s2e._attributes import DRAW_KEY, FIXED_PARAMS_KEY, SAMPLER_KEY
from optuna_s2e.sampler import S2ESampler

_S2E = S2ESampler.__name__
_MAX_NAME = 100


def sampler_mark(sampler: BaseSampler) -> Mapping[str, Any]:
    """Return the system attributes that name the sampler of a trial; S2E's draws have records."""
    name = _name_of(sampler)
    return {} if name == _S2E else {SAMPLER_KEY: name[:_MAX_NAME]}


def find_sampler_change(study: Study) -> str | None:
    """Say in one sentence that a study was searched with another sampler than it has now.

    The newest trial that tells who drew it decides. Enqueued trials tell nothing.

    Returns:
        None if it was not, or if its trials do not tell.
    """
    now = _name_of(study.sampler)
    for trial in reversed(_optuna.all_trials(study)):
        before = _drawn_by(trial)
        if before is None and now == _S2E and _is_drawn(trial):
            before = f"a sampler other than {_S2E}"
        if before is not None:
            return None if before == now else _text(study, trial.number, before, now)
    return None


def warn_of_sampler_change(study: Study) -> None:
    """Warn if a study was searched with another sampler than it has now."""
    change = find_sampler_change(study)
    if change is not None:
        warnings.warn(change, stacklevel=3)


def _name_of(sampler: BaseSampler) -> str:
    return type(_optuna.innermost_sampler(sampler)).__name__


def _drawn_by(trial: FrozenTrial) -> str | None:
    name = trial.system_attrs.get(SAMPLER_KEY)
    if isinstance(trial.system_attrs.get(DRAW_KEY), dict):
        return _S2E
    return ascii(name[:_MAX_NAME])[1:-1] if isinstance(name, str) else None


def _is_drawn(trial: FrozenTrial) -> bool:
    return (
        trial.state.is_finished()
        and bool(trial.params)
        and FIXED_PARAMS_KEY not in trial.system_attrs
    )


def _text(study: Study, number: int, before: str, now: str) -> str:
    theta = ""
    if now == _S2E:
        theta = f" {_S2E} learns from its own draws only."
    elif before == _S2E:
        theta = " Theta stands still meanwhile."
    return (
        f"Study {study.study_name!r} was searched with {before} (trial {number} is the newest), "
        f"and goes on with {now}.{theta} If that is not what you want, load the study with the "
        "sampler that it was searched with."
    )
