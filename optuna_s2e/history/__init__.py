"""What a study says of its search: the records of its trials, and what it tells workers.

Only `_search` and `_sources` write to a study.
"""

from optuna_s2e.history._ledger import MAX_PENDING, Chain, Ledger, State
from optuna_s2e.history._origin import locate, space_of
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
from optuna_s2e.history._search import Search, extend_search, planned_trials
from optuna_s2e.history._sources import SourceDraws, Sources, read_sources, record_sources

__all__ = [
    "MAX_ATTEMPTS",
    "MAX_MEMBERS",
    "MAX_PENDING",
    "Chain",
    "Draw",
    "Ledger",
    "Record",
    "Rules",
    "Search",
    "Slot",
    "SourceDraws",
    "Sources",
    "State",
    "extend_search",
    "failed_by_objective",
    "join_settings",
    "locate",
    "own_record",
    "planned_trials",
    "read_leading_tags",
    "read_sources",
    "read_tags",
    "record_sources",
    "space_of",
    "split_settings",
]
