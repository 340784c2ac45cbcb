"""What a sampler does to a study, without Optuna's interface: reads it, moves theta, draws.

Two ways of working share it: trials that are asked for one by one (`sampler.py`) and the slots
of a search by batches (`slot_draws.py`). Nothing that is needed later is kept: every draw ends as
a record on its own trial, and the records are all there is (docs/architecture.md).
"""

from __future__ import annotations

import hashlib
import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_s2e import _optuna
from optuna_s2e._typing import FloatArray
from optuna_s2e.distributions import Key, keyed_rng
from optuna_s2e.estimators import UpdateSettings
from optuna_s2e.history import (
    Chain,
    Draw,
    Ledger,
    Record,
    Rules,
    State,
    join_settings,
    read_tags,
    split_settings,
)
from optuna_s2e.sampler._update import fit_model, next_theta, recorded_theta
from optuna_s2e.surrogate import Model, propose

_logger = optuna.logging.get_logger(__name__)


class Request(NamedTuple):
    """What is to be drawn.

    Attributes:
        number: Of the trial that is drawn.
        key: Keys the draw.
        pending: Coordinates of the draws whose losses are not known yet, (P, d).
        failed: Coordinates of draws that failed, (F, d).
    """

    number: int
    key: Key
    pending: FloatArray
    failed: FloatArray


@dataclass
class _Known:
    """What was read of a study; all of it can be read again."""

    ledger: Ledger
    model_of: int | None = None  # opener of the generation that the model belongs to
    model: Model | None = None


class Drawing:
    """How one sampler draws, in any study.

    Methods that read a study are to be called with the lock: threads of one process (`n_jobs`)
    share what was read.

    Args:
        settings: What theta depends on besides the space.
        consider_pruned: Whether pruned trials count.
        seed: Key of all random numbers; None takes it from the study's name.
        adopt: Whether other settings and spaces than the study's are taken over, not refused.

    Attributes:
        lock: See above.
    """

    def __init__(
        self, settings: UpdateSettings, *, consider_pruned: bool, seed: int | None, adopt: bool
    ) -> None:
        self._settings = settings
        self._consider_pruned = consider_pruned
        self._seed = seed
        self._adopt = adopt
        self._warned: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self._studies: WeakKeyDictionary[BaseStorage, dict[int, _Known]] = WeakKeyDictionary()
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_studies", "lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def estimator(self) -> str:
        """How theta moves."""
        return self._settings.estimator

    @property
    def population_size(self) -> int:
        """K, completed draws per update."""
        return self._settings.population_size

    @property
    def settings(self) -> dict[str, Any]:
        """All that theta depends on besides the space, ready for JSON; without the seed."""
        return join_settings(self._settings, self._consider_pruned)

    def seed_of(self, study: Study) -> int:
        """Return the key of a study's random numbers."""
        if self._seed is not None:
            return self._seed
        digest = hashlib.sha256(study.study_name.encode()).digest()
        return int.from_bytes(digest[:8], "big")

    # --- reading -----------------------------------------------------------------------------

    def ledger(self, study: Study) -> Ledger:
        """Return what was read of a study last time."""
        return self._known(study).ledger

    def _known(self, study: Study) -> _Known:
        studies = self._studies.setdefault(_optuna.storage_of(study), {})
        rules = Rules.of(study, self._consider_pruned)
        known = studies.get(_optuna.study_id(study))
        if known is None or known.ledger.rules != rules:  # other rules: a study made anew
            known = studies[_optuna.study_id(study)] = _Known(Ledger(rules))
        return known

    def state(self, study: Study, trial: FrozenTrial | None = None) -> State:
        """Read what is new in a study and find the head.

        Args:
            study: The study.
            trial: A running trial, which may name a schedule space.

        Raises:
            ValueError: If the study has several objectives, or another schedule space.
        """
        ledger = self.ledger(study).read(_optuna.all_trials(study))
        if ledger.later_release is not None:
            message = _later_release(study, ledger.later_release)
            self.warn_once("later release", f"{message} Its trials are ignored.")
        tags = read_tags(trial) if trial is not None else {}
        if tags and ledger.newest_tags and tags != ledger.newest_tags and not self._adopt:
            raise ValueError(
                f"The schedule space is {tags}, but study {study.study_name!r} was searched in "
                f"{dict(ledger.newest_tags)}. Use another study name, or pass "
                'on_config_change="adopt" to start anew at theta = 1.'
            )
        state = ledger.state(self.population_size, tags=tags, adopt=self._adopt)
        if state.left_behind is not None:
            self.warn_once(
                f"left behind {study.study_name}",
                f"The last {self.population_size} completed trials do not count as "
                f"draws, so the search stands still: of the last one, {state.left_behind}. Undo "
                'the change, use another study, or pass on_config_change="adopt" to start anew.',
            )
        return state

    def check(self, study: Study) -> None:
        """Raise if a study was searched with other settings, or by a later release.

        Raises:
            ValueError: If so.
        """
        ledger = self.ledger(study).read(_optuna.all_trials(study))
        if ledger.later_release is not None:
            raise ValueError(_later_release(study, ledger.later_release))
        self.settings_of(study, ledger.state(self.population_size, adopt=self._adopt))

    def settings_of(self, study: Study, state: State) -> dict[str, Any]:
        """Return the settings to record: those in force, or own ones that are adopted.

        Raises:
            ValueError: If the study was searched with others.
        """
        own = self.settings
        recorded = self.ledger(study).settings_in_force(state.chain)
        if recorded is not None and own != recorded and not self._adopt:
            raise ValueError(_config_change(study, own, recorded))
        if state.chain is None:  # adopted settings wait for the next generation
            return dict(recorded or own)
        return own

    # --- drawing -----------------------------------------------------------------------------

    def join(self, study: Study, chain: Chain, head: Record, request: Request) -> Record:
        """Draw from the theta of a chain's head."""
        ledger = self.ledger(study)
        parent = ledger.openers[head.parent] if head.parent is not None else None
        members = [ledger.draws[n] for n in head.members if n in ledger.draws]
        in_force = split_settings(head.settings or {})[0]
        model = self._model(study, chain, head.trial, parent, members, in_force)
        x = _sample(chain, head.generation, chain.theta, model, request)
        return Record(request.number, head.generation, opener=head.trial, x=tuple(x.tolist()))

    def open(
        self,
        study: Study,
        chain: Chain,
        members: Sequence[Draw],
        settings: Mapping[str, Any],
        request: Request,
    ) -> Record:
        """Move theta and draw from it: open the next generation.

        Args:
            study: The study.
            chain: The chain that it continues.
            members: The draws that the update uses, in order.
            settings: What `settings_of` returned.
            request: What is to be drawn.
        """
        ledger, parent, number = self.ledger(study), chain.head, request.number
        in_force = split_settings(settings)[0]
        model = self._model(study, chain, number, parent, members, in_force)
        thetas = partial(recorded_theta, ledger)
        update = next_theta(chain.space, parent, members, ledger, thetas, in_force, model)
        if not all(d.trial.value is None or math.isfinite(d.trial.value) for d in members):
            self.warn_once(
                "infinite",
                "A trial returned an infinite value; it counts as the worst (best) finite one "
                "among the draws of an update.",
            )
        generation = parent.generation + 1 if parent is not None else 1
        x = _sample(chain, generation, update.theta, model, request)
        _logger.debug(
            f"Trial {number} opens generation {generation}: KL {update.kl:.3f}, effective "
            f"sample size {update.effective_sample_size:.1f}."
        )
        return Record(
            number,
            generation,
            settings=settings,
            opener=number,
            x=tuple(x.tolist()),
            parent=parent.trial if parent is not None else None,
            members=tuple(d.record.trial for d in members),
            theta=tuple(update.theta.tolist()),
            space=chain.space.fingerprint,
        )

    def _model(
        self,
        study: Study,
        chain: Chain,
        opener: int,
        parent: Record | None,
        members: Sequence[Draw],
        settings: UpdateSettings,
    ) -> Model | None:
        """Return the model behind a generation, if its draws are to follow one."""
        if settings.estimator != "surrogate":
            return None
        known = self._known(study)
        if known.model_of != opener:
            known.model_of = opener
            known.model = fit_model(chain.space, parent, members, known.ledger, settings)
            if known.model is None:
                self.warn_once(
                    "no model",
                    "No model can be fitted to the losses so far: theta takes the paper's Newton "
                    "step instead, and trials are drawn from p_theta.",
                )
        return known.model

    def warn_once(self, topic: str, message: str) -> None:
        """Warn, but not twice of one topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, stacklevel=2)


def _sample(
    chain: Chain,
    generation: int,
    theta: FloatArray,
    model: Model | None,
    request: Request,
) -> FloatArray:
    rng = keyed_rng(request.key.seed, 1, generation, request.key.number)
    if model is None:
        return chain.space.sample(theta, rng)
    return propose(
        theta, model,
        pending=request.pending, failed=request.failed, generation=generation, rng=rng,
    )  # fmt: skip


def _later_release(study: Study, number: int) -> str:
    return (
        f"Study {study.study_name!r} was searched by a later release of optuna_s2e (trial "
        f"{number}): go on with that release."
    )


def _config_change(study: Study, own: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    names = [n for n in {**own, **recorded} if own.get(n) != recorded.get(n)]
    changes = ", ".join(f"{n} is {own.get(n)!r}, was {recorded.get(n)!r}" for n in names)
    return (
        f"The settings of study {study.study_name!r} have changed: {changes}. Resume with the "
        'old ones, or pass on_config_change="adopt" to take the new ones over from the next '
        "generation on."
    )
