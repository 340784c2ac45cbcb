"""Storages that many workers share and that survive outages: `open_storage`."""

from optuna_s2e.storages._open import open_storage
from optuna_s2e.storages._urls import absolute_url, file_of, hide_passwords, mask_url

__all__ = [
    "absolute_url",
    "file_of",
    "hide_passwords",
    "mask_url",
    "open_storage",
]
