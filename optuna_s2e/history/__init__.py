"""What the trials of a study say of its search. Nothing here writes to a study."""

from optuna_s2e.history._ledger import MAX_PENDING, Chain, Ledger, State, locate, space_of
from optuna_s2e.history._record import (
    MAX_ATTEMPTS,
    MAX_MEMBERS,
    Draw,
    Record,
    Rules,
    Slot,
    failed_by_objective,
    join_settings,
    own_record,
    read_leading_tags,
    read_tags,
    split_settings,
)

__all__ = [
    "MAX_ATTEMPTS",
    "MAX_MEMBERS",
    "MAX_PENDING",
    "Chain",
    "Draw",
    "Ledger",
    "Record",
    "Rules",
    "Slot",
    "State",
    "failed_by_objective",
    "join_settings",
    "locate",
    "own_record",
    "read_leading_tags",
    "read_tags",
    "space_of",
    "split_settings",
]
