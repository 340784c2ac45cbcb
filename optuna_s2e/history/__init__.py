"""What the trials of a study say of its search. Nothing here writes to a study."""

from optuna_s2e.history._ledger import MAX_PENDING, Chain, Ledger, State, locate, space_of
from optuna_s2e.history._record import (
    FAILURE_KEY,
    MAX_ATTEMPTS,
    MAX_MEMBERS,
    RECORD_KEY,
    Draw,
    Record,
    Rules,
    failed_by_objective,
    join_settings,
    own_record,
    read_tags,
    slot_key,
    split_settings,
)

__all__ = [
    "FAILURE_KEY",
    "MAX_ATTEMPTS",
    "MAX_MEMBERS",
    "MAX_PENDING",
    "RECORD_KEY",
    "Chain",
    "Draw",
    "Ledger",
    "Record",
    "Rules",
    "State",
    "failed_by_objective",
    "join_settings",
    "locate",
    "own_record",
    "read_tags",
    "slot_key",
    "space_of",
    "split_settings",
]
