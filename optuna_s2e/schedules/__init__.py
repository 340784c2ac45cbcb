"""Sample-selection schedules R(t), and the spaces in which they are searched.

- `Schedule` is one R(t); `n_kept` turns it into numbers of samples.
- `ScheduleSpace` draws schedules in an Optuna objective; `find_space` finds the space of a
  trial, `find_spaces` those of all its branches.
- `standard_schedule`, `coteaching_schedule`, `suggested_schedule` and `table1_schedule` need no
  search.
- `SPACES` holds the formulas of the spaces, `basis_function` those of Table 1.
"""

from optuna_s2e.schedules._baselines import (
    coteaching_schedule,
    standard_schedule,
    suggested_schedule,
    table1_schedule,
)
from optuna_s2e.schedules._formulas import SPACES, basis_function
from optuna_s2e.schedules._schedule import (
    DEFAULT_KIND,
    MIN_KEEP_RATE,
    N_EPOCHS,
    TAGS,
    Schedule,
    ScheduleSpace,
    find_space,
    find_spaces,
    n_kept,
)

__all__ = [
    "DEFAULT_KIND",
    "MIN_KEEP_RATE",
    "N_EPOCHS",
    "SPACES",
    "TAGS",
    "Schedule",
    "ScheduleSpace",
    "basis_function",
    "coteaching_schedule",
    "find_space",
    "find_spaces",
    "n_kept",
    "standard_schedule",
    "suggested_schedule",
    "table1_schedule",
]
