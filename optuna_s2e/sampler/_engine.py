"""The engine: reads a study, decides how the next trial is drawn, moves theta and draws.

`S2ESampler` asks for one trial at a time, `optimize_batch` for the slots of a batch. Both call
`Engine.next`, which makes the one decision there is: the trial is drawn from theta = 1
(generation 0), joins the generation of the head, or opens the next generation. Every draw ends as
a record on its own trial. The records are the whole state (docs/architecture.md); what the engine
keeps can be read again.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_s2e import _optuna
from optuna_s2e._attributes import DRAW_KEY, FIXED_PARAMS_KEY
from optuna_s2e.distributions import Key, keyed_rng
from optuna_s2e.estimators import UpdateSettings
from optuna_s2e.history import (
    Chain,
    Draw,
    Ledger,
    Record,
    Rules,
    Slot,
    Sources,
    State,
    join_settings,
    own_record,
    read_leading_tags,
    read_sources,
    record_sources,
    split_settings,
)
from optuna_s2e.sampler._request import Drawn, Request
from optuna_s2e.sampler._update import fit_model, model_version, next_theta, recorded_theta
from optuna_s2e.surrogate import Model, propose

_logger = optuna.logging.get_logger(__name__)


@dataclass
class _Known:
    """What was read of a study. All of it can be read again."""

    ledger: Ledger
    sources_settled: bool = False  # whether theta moved by the ledger's sources
    model_of: int | None = None  # opener of the generation that the model belongs to
    model: Model | None = None


_engines: WeakSet[Engine] = WeakSet()


def _forget_all() -> None:
    for engine in list(_engines):
        engine._forget()


if hasattr(os, "register_at_fork"):  # another thread may hold a lock, amid a reading
    os.register_at_fork(after_in_child=_forget_all)


class Engine:
    """Draws trials in any study, with one set of settings.

    Threads of one process share the engine of their sampler; every method takes its lock.

    Args:
        settings: What theta depends on besides the space.
        consider_pruned: Whether pruned trials count.
        seed: Key of all random numbers. None takes it from the study's name.
        adopt: Whether settings and spaces that differ from the study's are adopted. Otherwise
            they are refused.
        sources: Trials of earlier studies that new studies learn from.
    """

    def __init__(
        self,
        settings: UpdateSettings,
        *,
        consider_pruned: bool,
        seed: int | None,
        adopt: bool,
        sources: Sources | None = None,
    ) -> None:
        self._settings = settings
        self._own = join_settings(settings, consider_pruned)
        self._sources = sources
        self._consider_pruned = consider_pruned
        self._seed = seed
        self._adopt = adopt
        self._warned: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        _engines.add(self)
        self._studies: WeakKeyDictionary[BaseStorage, dict[int, _Known]] = WeakKeyDictionary()
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_studies", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def estimator(self) -> str:
        """How theta moves."""
        return self._settings.estimator

    @property
    def population_size(self) -> int:
        """K, the number of completed draws per update."""
        return self._settings.population_size

    @property
    def settings(self) -> dict[str, Any]:
        """All that theta depends on besides the space, as JSON values, without the seed."""
        return join_settings(self._settings, self._consider_pruned)

    def key(self, study: Study, trial: FrozenTrial, record: Record | None = None) -> Key:
        """Return the key of the parameters that theta does not describe.

        Args:
            study: The study.
            trial: The trial.
            record: Its record, if it has one.
        """
        if record is None:
            return Key(self._seed_of(study), trial.number)
        return Key(self._seed_of(study) if record.seed is None else record.seed, record.key)

    def seed_of_slot(self, study: Study, slot: Slot) -> int:
        """Return a seed for the objective in a slot, in [0, 2^32)."""
        return int(keyed_rng(self._seed_of(study), 2, slot.key).integers(2**32))

    def _seed_of(self, study: Study) -> int:
        if self._seed is not None:
            return self._seed
        digest = hashlib.sha256(study.study_name.encode()).digest()
        return int.from_bytes(digest[:8], "big")

    # --- reading -----------------------------------------------------------------------------

    @contextmanager
    def reading(
        self, study: Study, trial: FrozenTrial | None = None
    ) -> Iterator[tuple[Ledger, State]]:
        """Read what is new in a study; yield its ledger and where the search stands, locked.

        Args:
            study: The study.
            trial: A running trial, which may name a schedule space.

        Raises:
            ValueError: If the study has several objectives, another schedule space or other
                settings.
        """
        with self._lock:
            state = self.state(study, trial)
            ledger = self._known(study).ledger
            self._settings_to_record(study, ledger, state.chain)
            yield ledger, state

    def state(self, study: Study, trial: FrozenTrial | None = None) -> State:
        """Read what is new in a study and find the head.

        Args:
            study: The study.
            trial: A running trial, which may name a schedule space.

        Raises:
            ValueError: If the study has several objectives, or another schedule space.
        """
        with self._lock:
            ledger = self._read(study, trial)
            if self._sources is not None:
                self._settle_sources(study)
            if ledger.later_release is not None:
                message = _later_release(study, ledger.later_release)
                self.warn_once("later release", f"{message} Its trials are ignored.")
            tags = read_leading_tags(trial) if trial is not None else {}
            newest = ledger.newest_tags
            if newest and not tags.items() <= newest.items() and not self._adopt:
                raise ValueError(
                    f"The schedule space is {tags}, but study {study.study_name!r} was searched "
                    f"in {dict(newest)}. Use another study name, or pass "
                    'on_config_change="adopt" to start anew at theta = 1.'
                )
            state = ledger.state(
                self.population_size,
                tags=tags,
                adopt=self._adopt,
                with_others=self.estimator == "surrogate",
            )
        if state.left_behind is not None:
            self.warn_once(
                f"left behind {study.study_name}",
                f"The last {self.population_size} completed trials do not count as draws, so the "
                f"search stands still. The last one does not count because {state.left_behind}. "
                'Undo the change, use another study, or pass on_config_change="adopt" to start '
                "anew.",
            )
        return state

    def check(self, study: Study) -> None:
        """Raise if a study was searched with other settings, or by a later release.

        Raises:
            ValueError: If so.
        """
        with self._lock:
            ledger = self._read(study)
            if ledger.later_release is not None:
                raise ValueError(_later_release(study, ledger.later_release))
            state = ledger.state(self.population_size, adopt=self._adopt)
            self._settings_to_record(study, ledger, state.chain)

    def _settle_sources(self, study: Study) -> None:
        """Know the source trials of a study: those that it holds, or own ones if it is new.

        Raises:
            ValueError: If theta moved without the own ones already.
        """
        known = self._known(study)
        if known.sources_settled:
            return
        found = read_sources(_optuna.study_system_attrs(study))
        if self._sources is not None:
            if found is None and known.ledger.openers:
                raise ValueError(
                    f"Study {study.study_name!r} was searched without source_studies, and its "
                    "thetas follow without them. Leave them out, or use another study."
                )
            found = record_sources(study, self._sources) if found is None else found
            if found.names != self._sources.names:
                self.warn_once(
                    f"sources {study.study_name}",
                    f"Study {study.study_name!r} goes on with the source studies that it began "
                    f"with, {list(found.names)}; {list(self._sources.names)} are not used.",
                )
        known.ledger.sources, known.sources_settled = found, bool(known.ledger.openers)

    def _read(self, study: Study, trial: FrozenTrial | None = None) -> Ledger:
        """Read what is new in a study, and forget what was known of one that it replaces."""
        rules = Rules.of(study, self._consider_pruned)
        trials = _optuna.all_trials(study) if trial is None else _optuna.trials_for(study, trial)
        studies = self._studies.setdefault(_optuna.storage_of(study), {})
        known = studies.get(_optuna.study_id(study))
        if (
            known is None
            or known.ledger.rules != rules
            or not known.ledger.is_continued_by(trials)
        ):
            known = studies[_optuna.study_id(study)] = _Known(Ledger(rules))
        return known.ledger.read(trials)

    def _known(self, study: Study) -> _Known:
        return self._studies[_optuna.storage_of(study)][_optuna.study_id(study)]

    def _settings_to_record(
        self, study: Study, ledger: Ledger, chain: Chain | None
    ) -> dict[str, Any]:
        """Return the settings that a record names: those in force, or own ones to adopt.

        Raises:
            ValueError: If the study was searched with other settings.
        """
        own = self._own
        recorded = ledger.settings_in_force(chain)
        if recorded is not None and own != recorded and not self._adopt:
            raise ValueError(_config_change(study, own, recorded))
        if chain is None:  # adopted settings wait for the next generation
            return dict(recorded or own)
        return dict(own)

    # --- drawing -----------------------------------------------------------------------------

    def next(self, study: Study, request: Request) -> Drawn | None:
        """Draw a trial and record the draw on it.

        A retry keeps the point of its first try. An enqueued trial gets no record: it is no draw.

        Args:
            study: The study.
            request: The trial, and how its draw is planned.

        Returns:
            What was drawn; None if the plan says that the trial must not be drawn any more.

        Raises:
            ValueError: If the study has several objectives, another schedule space or other
                settings.
        """
        trial = request.trial
        with self._lock:
            state = self.state(study, trial) if request.state is None else request.state
            attrs = self._known(study).ledger.trials[trial.number].system_attrs
            record = own_record(attrs, trial) or self._draw(study, request, state)
        if record is None:
            return None
        if DRAW_KEY not in attrs and FIXED_PARAMS_KEY not in attrs:
            _optuna.set_system_attr(study, trial, DRAW_KEY, record.to_attr())
        chain = state.chain if record.generation > 0 else None
        fits = chain is not None and len(record.x or ()) == len(chain.space.names)
        params = chain.space.decode(np.array(record.x)) if chain is not None and fits else {}
        return Drawn(self.key(study, trial, record), chain, params)

    def recall(self, study: Study, trial: FrozenTrial) -> Drawn:
        """Return what a trial records of its draw, without its parameters."""
        record = own_record(_optuna.system_attrs(study, trial), trial)
        key = self.key(study, trial, record)
        if record is None or record.generation == 0:
            return Drawn(key, None, {})
        return Drawn(key, self.state(study, trial).chain, {})

    def _draw(self, study: Study, request: Request, state: State) -> Record | None:
        """Draw from theta = 1, join the head's generation, or open the next one."""
        known, number = self._known(study), request.trial.number
        plan = request.plan(known.ledger, state, self.population_size)
        if plan is None:
            return None
        settings = self._settings_to_record(study, known.ledger, plan.chain or state.chain)
        if plan.chain is None:
            record = Record(number, 0, seed=self._seed_of(study), settings=settings)
        elif plan.members:
            record = self._open(study, plan.chain, plan.members, settings, number)
        else:
            record = self._join(study, plan.chain, number)
        if request.slot is not None:
            record = replace(record, slot=request.slot.number, attempt=request.slot.attempt)
        if plan.chain is None:
            return record
        theta = plan.chain.theta if record.theta is None else np.array(record.theta)
        rng = keyed_rng(self._seed_of(study), 1, record.generation, record.key)
        if known.model is None:
            x = plan.chain.space.sample(theta, rng)
        else:
            x = propose(
                theta,
                known.model,
                pending=plan.pending,
                failed=plan.failed,
                generation=record.generation,
                rng=rng,
            )
        return replace(record, x=tuple(x.tolist()))

    def _join(self, study: Study, chain: Chain, number: int) -> Record:
        """Return the record of a trial that joins the generation of the head; x is missing."""
        known = self._known(study)
        ledger, head = known.ledger, chain.head
        assert head is not None
        if known.model_of != head.trial:
            parent = ledger.openers[head.parent] if head.parent is not None else None
            members = [ledger.draws[n] for n in head.members if n in ledger.draws]
            in_force = split_settings(head.settings or {})[0]
            self._fit_model(study, head.trial, chain, parent, members, in_force, head.also)
        return Record(number, head.generation, opener=head.trial)

    def _open(
        self,
        study: Study,
        chain: Chain,
        members: Sequence[Draw],
        settings: Mapping[str, Any],
        number: int,
    ) -> Record:
        """Move theta; return the record of the trial that opens the generation; x is missing."""
        known = self._known(study)
        ledger, parent, in_force = known.ledger, chain.head, split_settings(settings)[0]
        others = ledger.unknown(chain) if in_force.estimator == "surrogate" else []
        also = tuple(t.number for t in others)
        self._fit_model(study, number, chain, parent, members, in_force, also)
        thetas = partial(recorded_theta, ledger)
        update = next_theta(chain.space, parent, members, ledger, thetas, in_force, known.model)
        if not all(d.trial.value is None or math.isfinite(d.trial.value) for d in members):
            self.warn_once(
                "infinite",
                "A trial returned an infinite value. It counts as the worst (best) finite one "
                "among the draws of an update.",
            )
        generation = parent.generation + 1 if parent is not None else 1
        _logger.debug(
            f"Trial {number} opens generation {generation}: KL {update.kl:.3f}, effective "
            f"sample size {update.effective_sample_size:.1f}."
        )
        return Record(
            number,
            generation,
            settings=settings,
            opener=number,
            parent=parent.trial if parent is not None else None,
            members=tuple(d.record.trial for d in members),
            also=also,
            theta=tuple(update.theta.tolist()),
            space=chain.space.fingerprint,
            model=model_version(in_force, bool(also) or any(r.also for r in chain.openers)),
        )

    def _fit_model(
        self,
        study: Study,
        opener: int,
        chain: Chain,
        parent: Record | None,
        members: Sequence[Draw],
        settings: UpdateSettings,
        also: Sequence[int],
    ) -> None:
        """Know the model behind a generation; None if its draws follow none."""
        known, model = self._known(study), None
        if settings.estimator == "surrogate":
            self._settle_sources(study)
            sources = known.ledger.sources
            if sources is not None and parent is None and (out := sources.outside(chain.space)):
                self.warn_once(
                    f"sources outside {study.study_name}",
                    f"Study {study.study_name!r} learns nothing from the source studies "
                    f"{out}: none of their trials has its parameters, within its ranges.",
                )
            model = fit_model(chain.space, parent, members, known.ledger, settings, also)
            if model is None:
                self.warn_once(
                    "no model",
                    "No model can be fitted to the losses so far. Theta takes a Newton step on "
                    "the new losses instead, and trials are drawn from p_theta.",
                )
        known.model_of, known.model = opener, model

    def warn_once(self, topic: str, message: str) -> None:
        """Warn, but only once per topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, stacklevel=2)


def _later_release(study: Study, number: int) -> str:
    return (
        f"Study {study.study_name!r} was searched by a later release of optuna_s2e (trial "
        f"{number}). Go on with that release."
    )


def _config_change(study: Study, own: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    names = [n for n in {**own, **recorded} if own.get(n) != recorded.get(n)]
    changes = ", ".join(f"{n} is {own.get(n)!r}, was {recorded.get(n)!r}" for n in names)
    return (
        f"The settings of study {study.study_name!r} have changed: {changes}. Resume with the "
        'old ones, or pass on_config_change="adopt" to take the new ones over from the next '
        "generation on."
    )
