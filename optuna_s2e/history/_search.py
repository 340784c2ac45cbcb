"""What a study says of its search to those who join it or look at it.

The records of trials take precedence: nothing here decides about theta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from optuna.study import Study

from optuna_s2e._attributes import MAX_TRIALS, N_TRIALS_KEY, SEARCH_KEY
from optuna_s2e._checks import check_int
from optuna_s2e.history._record import split_settings


class Search(NamedTuple):
    """What a study tells workers that join its search.

    Attributes:
        settings: The settings of the sampler, as its records keep them.
        seed: The seed of the draws.
        n_trials: The number of completed trials that the search ends with; None if the study
            does not say.
    """

    settings: Mapping[str, Any] | None = None
    seed: int | None = None
    n_trials: int | None = None

    def write(self, study: Study) -> None:
        """Write it to a study, in place of what the study said."""
        n_trials = None if self.n_trials is None else min(self.n_trials, MAX_TRIALS)
        study.set_user_attr(SEARCH_KEY, {"v": 1, **self._asdict(), "n_trials": n_trials})
        study.set_user_attr(N_TRIALS_KEY, n_trials)

    @classmethod
    def read(cls, study: Study) -> Search:
        """Read it from a study. The fields are None if the study holds none.

        Raises:
            ValueError: If it is damaged.
        """
        attrs = study.user_attrs
        attr = attrs.get(SEARCH_KEY)
        if attr is None:
            return cls(n_trials=planned_trials(attrs))
        try:
            version, settings, seed, n = (
                attr[key] for key in ("v", "settings", "seed", "n_trials")
            )
            if version != 1:
                raise ValueError(f"it is of version {version!r}")
            split_settings(settings)
            for name, value, limit in (("seed", seed, 2**64), ("n_trials", n, MAX_TRIALS)):
                if value is not None:
                    check_int(name, value, 0, limit)
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise ValueError(
                f"The settings that study {study.study_name!r} keeps for its workers are damaged: "
                f"{str(error).rstrip('.')}."
            ) from error
        return cls(settings, seed, planned_trials(attrs))


def planned_trials(attrs: Mapping[str, Any]) -> int | None:
    """Return the number of completed trials that a search ends with.

    It is the number of the last `s2e search`, or a larger one that was asked for since
    (`extend_search`): then the search goes on until that is reached.

    Args:
        attrs: User attributes of the study.

    Returns:
        An int of at least 1. None if no one has said it, or what was said is damaged.
    """
    search = attrs.get(SEARCH_KEY)
    said = (
        search.get("n_trials") if isinstance(search, Mapping) else None,
        attrs.get(N_TRIALS_KEY),
    )
    sound = [
        n for n in said if isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MAX_TRIALS
    ]
    return max(sound, default=None)


def extend_search(study: Study, n_trials: int) -> None:
    """Let a search end with n completed trials, unless it ends with more already."""
    if n_trials > (planned_trials(study.user_attrs) or 0):
        study.set_user_attr(N_TRIALS_KEY, min(n_trials, MAX_TRIALS))
