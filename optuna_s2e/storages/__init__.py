"""Storages that many workers share, and that survive outages: `open_storage`."""

from optuna_s2e.storages._open import open_storage
from optuna_s2e.storages._urls import hide_passwords

__all__ = [
    "hide_passwords",
    "open_storage",
]
