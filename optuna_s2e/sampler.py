"""The Optuna sampler: asks history where the search stands, draws from p_theta, records the draw.

No formula and no SQL here. Nothing that is needed later is kept in the sampler: every draw
writes one record to its own trial, and the records are all there is (docs/architecture.md).
"""

from __future__ import annotations

import hashlib
import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna, assisted, timeline
from optuna_s2e.history import Chain, Ledger, State
from optuna_s2e.keyed import Key, KeyedSampler, draw_independent
from optuna_s2e.records import (
    FAILURE_KEY,
    RECORD_KEY,
    Draw,
    Record,
    Rules,
    is_retry,
    join_settings,
    read_tags,
    split_settings,
)
from optuna_s2e.search_space import keyed_rng
from optuna_s2e.settings import UpdateSettings, resolve
from optuna_s2e.slots import Batch, Slot, drawn_before, find_batch
from optuna_s2e.surrogate import Surrogate

_logger = optuna.logging.get_logger(__name__)


class _Asked(NamedTuple):
    """What this thread knows of the trial that it samples."""

    storage_and_trial: tuple[int, int]
    key: Key
    state: State | None = None  # read by infer_relative_search_space for sample_relative
    chain: Chain | None = None  # whose head the trial was drawn from; None in generation 0


@dataclass
class _Known:
    """What was read of a study; all of it can be read again."""

    ledger: Ledger
    model_of: int | None = None  # opener of the generation that the model belongs to
    model: Surrogate | None = None


class S2ESampler(BaseSampler):
    r"""Search with a distribution p_theta whose parameter moves by stochastic relaxation.

    Trials are drawn from p_theta, a product of Dirichlet (simplexes of `suggest_simplex`), Beta
    (floats and ints) and categorical distributions; theta = 1 is Optuna's uniform distribution.
    (With `estimator="surrogate"` p_theta proposes half of the candidates, and a model chooses.)
    Whenever K = `population_size` draws have completed since the last update, whichever theta
    they came from, the next trial opens a generation: theta_{m+1} = theta_m - rho B^{-1} g with
    the gradient g (Eq 7) of E_{p_theta}[f] and, for B, the Fisher information or the Hessian
    (Proposition 1), estimated from the K and, with importance weights, from earlier draws.

    All state lives in the trials (system attribute `s2e:draw`), so studies can be resumed,
    copied, and worked on by any number of processes that never wait for each other; the same
    seed in every worker is safe. `generations(study)` shows the state, `replay(study)`
    recomputes it.

    Trials that do not count as draws: enqueued ones, those of other samplers, `add_trial`ed
    ones, failed ones, and pruned ones (unless `consider_pruned_trials`). Parameters that not all
    of the first K trials share (conditional ones) are drawn uniformly.

    Args:
        population_size: K, completed draws per update, at least 1.
        estimator: How theta moves. `"surrogate"`: Newton on a model of the loss, which also picks
            the draws among candidates (`optuna_s2e.assisted`). `"natural"`, `"newton"` (the
            paper's Eq 9), `"cubic"` (cubic-regularised Newton), `"gradient"`: from the losses
            alone; with `reuse=0`, `"newton"` is the paper's Algorithm 2. The default is the best
            of them in `studies/`.
        step_size: rho > 0. None: 3 for `"natural"`, 1 for the others.
        max_kl: Largest KL(p_{theta_{m+1}} || p_{theta_m}) of one update, in nats, > 0.
        curvature_bounds: (eta, L) of Assumption 3: eigenvalues of the Hessian, relative to the
            Fisher information, are brought into this interval.
        theta_bounds: Box in which every component of theta stays.
        max_weight: Upper bound of the weight p_theta(x) / p_drawn(x) of a draw from an older
            theta.
        reuse: Number of earlier updates whose draws take part again, in [0, 1000], with
            importance weights or as data of the model; 0 is the paper's memoryless update. None:
            1000 for `"surrogate"`, 10 for the others.
        consider_pruned_trials: Count pruned trials with their last reported value. That biases
            the gradient towards what looks good early.
        seed: Key of all random numbers. None takes it from the study's name, which Optuna makes
            unique unless you choose it.
        on_config_change: What to do if the study was searched with other settings (any of the
            arguments above but `seed`), or another schedule space: `"refuse"` (ValueError naming
            both values) or `"adopt"` (the new settings rule from the next generation on; another
            space starts anew at theta = 1).
        independent_sampler: Draws the parameters outside of theta. None draws them uniformly.
        warn_independent_sampling: Warn if a parameter is drawn outside of theta.

    Raises:
        ValueError: If an argument is out of range; when sampling, if the study has several
            objectives or other settings.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=30)
        >>> study.best_value < 0.01
        True

    References:
        Yao et al., "Searching to Exploit Memorization Effect in Learning with Noisy Labels",
        ICML 2020, Algorithm 2.
    """

    def __init__(
        self,
        *,
        population_size: int = 6,
        estimator: str = "surrogate",
        step_size: float | None = None,
        max_kl: float = 1.0,
        curvature_bounds: tuple[float, float] = (0.1, 10.0),
        theta_bounds: tuple[float, float] = (1.0, 100.0),
        max_weight: float = 10.0,
        reuse: int | None = None,
        consider_pruned_trials: bool = False,
        seed: int | None = None,
        on_config_change: str = "refuse",
        independent_sampler: BaseSampler | None = None,
        warn_independent_sampling: bool = True,
    ) -> None:
        asked = {
            "population_size": population_size,
            "estimator": estimator,
            "step_size": step_size,
            "max_kl": max_kl,
            "curvature_bounds": curvature_bounds,
            "theta_bounds": theta_bounds,
            "max_weight": max_weight,
            "reuse": reuse,
        }
        self._update_settings = resolve({n: v for n, v in asked.items() if v is not None})
        if on_config_change not in ("refuse", "adopt"):
            raise ValueError(
                f'on_config_change must be "refuse" or "adopt", but got {on_config_change!r}.'
            )
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
                raise ValueError(f"seed must be a non-negative int or None, but got {seed!r}.")
            seed = int(seed)
        self._consider_pruned = bool(consider_pruned_trials)
        self._seed = seed
        self._adopt = on_config_change == "adopt"
        self._independent_sampler = independent_sampler
        self._warn_independent_sampling = warn_independent_sampling
        self._warned: set[str] = set()
        self._make_caches()

    def _make_caches(self) -> None:
        # what was read of each study; all of it can be read again
        self._studies: WeakKeyDictionary[BaseStorage, dict[int, _Known]] = WeakKeyDictionary()
        self._lock = threading.Lock()  # threads of one process (n_jobs) share the ledgers
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        caches = ("_studies", "_lock", "_local")
        return {k: v for k, v in self.__dict__.items() if k not in caches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_caches()

    def __str__(self) -> str:
        return f"S2ESampler({self._update_settings.estimator}, K={self.population_size})"

    @property
    def population_size(self) -> int:
        """K, completed draws per update."""
        return self._update_settings.population_size

    @property
    def settings(self) -> dict[str, Any]:
        """All that theta depends on besides the space, ready for JSON; without the seed."""
        return join_settings(self._update_settings, self._consider_pruned)

    def check(self, study: Study) -> None:
        """Raise now, rather than in the first trial, if the study has other settings.

        A study of a later release raises, too; when sampling, it only warns.

        Raises:
            ValueError: As when sampling.
        """
        self._raise_error_if_multi_objective(study)
        with self._lock:
            ledger = self._ledger(study).read(_optuna.all_trials(study))
            if ledger.later_release is not None:
                raise ValueError(_later_release(study, ledger.later_release))
            state = ledger.state(self.population_size, adopt=self._adopt)
            self._settings_of(study, state)

    def reseed_rng(self) -> None:
        """Do nothing to the draws: they are keyed, not carried. Reseed the inner sampler."""
        if self._independent_sampler is not None:
            self._independent_sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the inner sampler."""
        if self._independent_sampler is not None:
            self._independent_sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that theta describes; none while that is not known."""
        with self._lock:
            state = self._state(study, trial)
        self._local.asked = _Asked(_identity(study, trial), self._key(study, trial), state)
        return dict(state.chain.space.distributions) if state.chain is not None else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the trial's point and record it."""
        self._raise_error_if_multi_objective(study)
        asked = getattr(self._local, "asked", None)
        if asked is None or asked.storage_and_trial != _identity(study, trial):
            asked = _Asked(_identity(study, trial), self._key(study, trial), None)
        attrs = _optuna.system_attrs(study, trial)
        record = _own_record(attrs, trial)  # a retry has one, and keeps its point
        drawn: dict[str, Any] = {}
        with self._lock:
            state = asked.state if asked.state is not None else self._state(study, trial)
            if record is None:
                record, drawn = self._draw(study, trial, state, asked.key)
            elif state.chain is not None and len(record.x or ()) == len(state.chain.space.names):
                drawn = state.chain.space.decode(np.array(record.x))
        if RECORD_KEY not in attrs and "fixed_params" not in attrs:  # enqueued: no draw
            _optuna.set_system_attr(study, trial, RECORD_KEY, record.to_attr())
        seed = asked.key.seed if record.seed is None else record.seed
        key = Key(seed, record.key)
        chain = state.chain if record.generation > 0 else None
        self._local.asked = _Asked(asked.storage_and_trial, key, chain=chain)
        return {
            name: drawn[name] if name in drawn else draw_independent(key, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter uniformly: all of generation 0, and what theta does not describe."""
        self._raise_error_if_multi_objective(study)
        asked = self._asked(study, trial)
        if asked.chain is not None:
            self._warn_outside_theta(asked.chain, trial, param_name, param_distribution)
            if self._independent_sampler is not None:
                return self._independent_sampler.sample_independent(
                    study, trial, param_name, param_distribution
                )
        return draw_independent(asked.key, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the inner sampler; warn if nothing but failures comes in."""
        if self._independent_sampler is not None:
            self._independent_sampler.after_trial(study, trial, state, values)
        if getattr(trial, "constraints", None):  # an attribute since Optuna 5
            self._warn_once("constraints", "S2ESampler does not use constraints.")
        if state == TrialState.FAIL and FAILURE_KEY not in trial.system_attrs:
            self._warn_after_failures(study)
        self._local.asked = None

    # --- searches by batches (optimize_batch) ---

    def find_batch(self, study: Study, max_attempts: int) -> Batch:
        """Return the slots that are to be drawn next.

        Raises:
            ValueError: As when sampling, or if a generation cannot be closed.
        """
        with self._lock:
            state = self._state(study)
            ledger = self._ledger(study)
            own = self._settings_of(study, state)  # refuses others
            in_force = _settings_in_force(state, ledger) or own
            return find_batch(
                ledger,
                state,
                in_force["population_size"],
                self.population_size,
                max_attempts,
            )

    def draw_slot(self, study: Study, trial: FrozenTrial, batch: Batch, slot: Slot) -> bool:
        """Record the draw of a slot on a new trial, whose parameters then follow from it.

        The first draw of a generation opens it.

        Returns:
            False if another process has opened a later generation meanwhile.
        """
        seed = self._seed_of(study)
        key = Key(seed, slot.key)
        with self._lock:
            state, ledger = self._state(study), self._ledger(study)
            head = state.chain.head if state.chain is not None else None
            if head is None and batch.members:  # generation 1
                state = state._replace(chain=Chain(batch.space))
            chain, settings = state.chain, self._settings_of(study, state)
            open_generation = head.generation if head is not None else 0
            if open_generation > batch.generation:
                return False
            if chain is None or batch.generation == 0:
                record = Record(trial.number, 0, seed=seed, settings=settings)
            elif head is not None and open_generation == batch.generation:
                pending = drawn_before(ledger, head, batch, slot)
                record = self._join(study, trial, chain, head, key, pending)
            else:
                pending = drawn_before(ledger, None, batch, slot)
                record = self._open(study, trial, chain, batch.members, settings, key, pending)
        record = replace(record, slot=slot.number, attempt=slot.attempt)
        _optuna.set_system_attr(study, trial, RECORD_KEY, record.to_attr())
        return True

    def check_space(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse what a trial of a batch was searched in, if the study has another space.

        Raises:
            ValueError: As when sampling.
        """
        with self._lock:
            self._state(study, trial)

    def seed_of_slot(self, study: Study, slot: Slot) -> int:
        """Return a seed for the objective in this slot, in [0, 2^32)."""
        return int(keyed_rng(self._seed_of(study), 2, slot.key).integers(2**32))

    def independent_sampler_of(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        """Return what draws the parameters outside of theta for one trial, without its study."""
        record = _own_record(_optuna.system_attrs(study, trial), trial)
        if record is None:  # enqueued: no draw
            return KeyedSampler(self._key(study, trial))
        if record.generation > 0 and self._independent_sampler is not None:
            return self._independent_sampler
        seed = self._seed_of(study) if record.seed is None else record.seed
        return KeyedSampler(Key(seed, record.key))

    def _seed_of(self, study: Study) -> int:
        if self._seed is not None:
            return self._seed
        digest = hashlib.sha256(study.study_name.encode()).digest()
        return int.from_bytes(digest[:8], "big")

    def _key(self, study: Study, trial: FrozenTrial) -> Key:
        return Key(self._seed_of(study), trial.number)

    def _state(self, study: Study, trial: FrozenTrial | None = None) -> State:
        """Read the study and find the head; to be called with the lock."""
        self._raise_error_if_multi_objective(study)
        ledger = self._ledger(study).read(_optuna.all_trials(study))
        if ledger.later_release is not None:
            message = _later_release(study, ledger.later_release)
            self._warn_once("later release", f"{message} Its trials are ignored.")
        tags = read_tags(trial) if trial is not None else {}
        if tags and ledger.newest_tags and tags != ledger.newest_tags and not self._adopt:
            raise ValueError(
                f"The schedule space is {tags}, but study {study.study_name!r} was searched in "
                f"{dict(ledger.newest_tags)}. Use another study name, or pass "
                'on_config_change="adopt" to start anew at theta = 1.'
            )
        state = ledger.state(self.population_size, tags=tags, adopt=self._adopt)
        if state.left_behind is not None:
            self._warn_once(
                f"left behind {study.study_name}",
                f"The last {self.population_size} completed trials do not count as "
                f"draws, so the search stands still: of the last one, {state.left_behind}. Undo "
                'the change, use another study, or pass on_config_change="adopt" to start anew.',
            )
        return state

    def _ledger(self, study: Study) -> Ledger:
        return self._known(study).ledger

    def _known(self, study: Study) -> _Known:
        studies = self._studies.setdefault(_optuna.storage_of(study), {})
        rules = Rules.of(study, self._consider_pruned)
        known = studies.get(_optuna.study_id(study))
        if known is None or known.ledger.rules != rules:  # other rules: a study made anew
            known = studies[_optuna.study_id(study)] = _Known(Ledger(rules))
        return known

    def _asked(self, study: Study, trial: FrozenTrial) -> _Asked:
        """Return what this thread knows of a trial, or what the trial's record says."""
        asked: _Asked | None = getattr(self._local, "asked", None)
        if asked is not None and asked.storage_and_trial == _identity(study, trial):
            return asked
        key = self._key(study, trial)
        record = _own_record(_optuna.system_attrs(study, trial), trial)
        if record is None:
            return _Asked(_identity(study, trial), key)
        key = Key(key.seed if record.seed is None else record.seed, record.key)
        if record.generation == 0:
            return _Asked(_identity(study, trial), key)
        with self._lock:
            return _Asked(_identity(study, trial), key, chain=self._state(study, trial).chain)

    def _settings_of(self, study: Study, state: State) -> dict[str, Any]:
        """Return the settings to record: those in force, or own ones that are adopted."""
        own = self.settings
        recorded = _settings_in_force(state, self._ledger(study))
        if recorded is not None and own != recorded and not self._adopt:
            raise ValueError(_config_change(study, own, recorded))
        if state.chain is None:  # adopted settings wait for the next generation
            return dict(recorded or own)
        return own

    def _draw(
        self, study: Study, trial: FrozenTrial, state: State, key: Key
    ) -> tuple[Record, dict[str, Any]]:
        """Join the head's generation or open the next; return the record and the parameters."""
        settings = self._settings_of(study, state)
        chain = state.chain
        opens = chain is not None and len(state.pool) >= self.population_size
        if chain is None or not (opens or chain.head):
            return Record(trial.number, 0, seed=key.seed, settings=settings), {}
        head = chain.head
        ledger = self._ledger(study)
        if not opens and head is not None:
            record = self._join(study, trial, chain, head, key, ledger.pending(chain))
            return record, chain.space.decode(np.array(record.x))
        members = state.pool[: self.population_size]
        pending = ledger.pending(chain, members)
        record = self._open(study, trial, chain, members, settings, key, pending)
        return record, chain.space.decode(np.array(record.x))

    def _join(
        self,
        study: Study,
        trial: FrozenTrial,
        chain: Chain,
        head: Record,
        key: Key,
        pending: timeline.FloatArray,
    ) -> Record:
        """Draw from the head's theta."""
        ledger = self._ledger(study)
        parent = ledger.openers[head.parent] if head.parent is not None else None
        members = [ledger.draws[n] for n in head.members if n in ledger.draws]
        in_force = split_settings(head.settings or {})[0]
        model = self._model(study, chain, head.trial, parent, members, in_force)
        x = self._sample(chain, head, chain.theta, model, key, pending)
        return Record(trial.number, head.generation, opener=head.trial, x=tuple(x.tolist()))

    def _open(
        self,
        study: Study,
        trial: FrozenTrial,
        chain: Chain,
        members: Sequence[Draw],
        settings: Mapping[str, Any],
        key: Key,
        pending: timeline.FloatArray,
    ) -> Record:
        ledger = self._ledger(study)
        in_force = split_settings(settings)[0]
        model = self._model(study, chain, trial.number, chain.head, members, in_force)
        update = timeline.next_theta(
            chain.space,
            chain.head,
            members,
            ledger,
            partial(timeline.recorded_theta, ledger),
            in_force,
            model,
        )
        if not all(d.trial.value is None or math.isfinite(d.trial.value) for d in members):
            self._warn_once(
                "infinite",
                "A trial returned an infinite value; it counts as the worst (best) finite one "
                "among the draws of an update.",
            )
        parent = chain.head
        generation = parent.generation + 1 if parent is not None else 1
        record = Record(
            trial.number,
            generation,
            settings=settings,
            opener=trial.number,
            parent=parent.trial if parent is not None else None,
            members=tuple(d.record.trial for d in members),
            theta=tuple(update.theta.tolist()),
            space=chain.space.fingerprint,
        )
        x = self._sample(chain, record, update.theta, model, key, pending)
        _logger.debug(
            f"Trial {trial.number} opens generation {generation}: KL {update.kl:.3f}, effective "
            f"sample size {update.effective_sample_size:.1f}."
        )
        return replace(record, x=tuple(x.tolist()))

    def _model(
        self,
        study: Study,
        chain: Chain,
        opener: int,
        parent: Record | None,
        members: Sequence[Draw],
        settings: UpdateSettings,
    ) -> Surrogate | None:
        """Return the model behind a generation, if its draws are to follow one."""
        if settings.estimator != "surrogate":
            return None
        known = self._known(study)
        if known.model_of != opener:
            known.model_of = opener
            known.model = timeline.fit_model(chain.space, parent, members, known.ledger, settings)
            if known.model is None:
                self._warn_once(
                    "no model",
                    "No model can be fitted to the losses so far: theta takes the paper's Newton "
                    "step instead, and trials are drawn from p_theta.",
                )
        return known.model

    @staticmethod
    def _sample(
        chain: Chain,
        opener: Record,
        theta: timeline.FloatArray,
        model: Surrogate | None,
        key: Key,
        pending: timeline.FloatArray,
    ) -> timeline.FloatArray:
        rng = keyed_rng(key.seed, 1, opener.generation, key.number)
        if model is None:
            return chain.space.sample(theta, rng)
        return assisted.propose(chain.space, theta, model, pending, opener.generation, rng)

    def _warn_outside_theta(
        self, chain: Chain, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> None:
        if not self._warn_independent_sampling:
            return
        searched = chain.space.distributions.get(name)
        reason = (
            "not all of the first trials had it"
            if searched is None
            else f"theta describes it as {searched}, it is now {distribution}, and trials with "
            "another range do not count as draws"
        )
        self._warn_once(
            f"independent {name}",
            f"The parameter {name!r} in trial {trial.number} is drawn independently of theta: "
            f"{reason}. Silence this with S2ESampler(warn_independent_sampling=False).",
        )

    def _warn_after_failures(self, study: Study) -> None:
        k = self.population_size
        finished = [t for t in _optuna.all_trials(study) if t.state.is_finished()]
        failed = finished[-(k - 1) :] if k > 1 else []
        if len(failed) == k - 1 and all(t.state == TrialState.FAIL for t in failed):
            self._warn_once(
                "failures",
                f"{k} trials in a row have failed. Failed trials do not count, so the search "
                "stands still while they go on.",
            )

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, stacklevel=2)


def _identity(study: Study, trial: FrozenTrial) -> tuple[int, int]:
    return id(_optuna.storage_of(study)), _optuna.trial_id(trial)


def _own_record(attrs: Mapping[str, Any], trial: FrozenTrial) -> Record | None:
    """Return the record that a trial has already: written before, or inherited by a retry."""
    record = Record.from_attr(attrs.get(RECORD_KEY))
    if record is None:
        return None
    own = record.trial == trial.number or is_retry(attrs, record.trial)
    return record if own else None


def _settings_in_force(state: State, ledger: Ledger) -> Mapping[str, Any] | None:
    if state.chain is not None and state.chain.head is not None:
        return state.chain.head.settings
    first = next((d.record for d in ledger.draws.values() if d.record.generation == 0), None)
    return first.settings if first is not None else None


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
