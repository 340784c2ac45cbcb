"""The OptunaHub package `samplers/s2e`: optuna_s2e's sampler under OptunaHub's roof."""

from optuna_s2e import S2ESampler, generations, replay, suggest_simplex

__all__ = ["S2ESampler", "generations", "replay", "suggest_simplex"]
