"""The Optuna sampler: trials that are asked for one by one, by any number of workers.

It knows Optuna's interface and what a thread has been asked; what is drawn, and what of the
study decides it, is in `drawing.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import DRAW_KEY, FAILURE_KEY, FIXED_PARAMS_KEY
from optuna_s2e.distributions import Key, draw_independent
from optuna_s2e.estimators import resolve
from optuna_s2e.history import Chain, Record, State, own_record
from optuna_s2e.sampler._engine import Drawing, Request


class _Asked(NamedTuple):
    """What this thread knows of the trial that it samples."""

    storage_and_trial: tuple[int, int]
    key: Key
    state: State | None = None  # read by infer_relative_search_space for sample_relative
    chain: Chain | None = None  # whose head the trial was drawn from; None in generation 0


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
    ones, failed ones, and pruned ones (unless `consider_pruned_trials`). Conditional
    parameters are searched like others; what none of the first K trials had is drawn uniformly.

    Args:
        population_size: K, completed draws per update, at least 1.
        estimator: How theta moves. `"surrogate"`: Newton on a model of the loss, which also picks
            the draws among candidates (`optuna_s2e.surrogate`). `"natural"`, `"newton"` (the
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
        if on_config_change not in ("refuse", "adopt"):
            raise ValueError(
                f'on_config_change must be "refuse" or "adopt", but got {on_config_change!r}.'
            )
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
                raise ValueError(f"seed must be a non-negative int or None, but got {seed!r}.")
            seed = int(seed)
        self.drawing = Drawing(  # optimize_batch draws with it, too
            resolve({name: value for name, value in asked.items() if value is not None}),
            consider_pruned=bool(consider_pruned_trials),
            seed=seed,
            adopt=on_config_change == "adopt",
        )
        self.independent_sampler = independent_sampler
        self._warn_independent_sampling = warn_independent_sampling
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def __str__(self) -> str:
        return f"S2ESampler({self.drawing.estimator}, K={self.population_size})"

    @property
    def population_size(self) -> int:
        """K, completed draws per update."""
        return self.drawing.population_size

    @property
    def settings(self) -> dict[str, Any]:
        """All that theta depends on besides the space, ready for JSON; without the seed."""
        return self.drawing.settings

    def check(self, study: Study) -> None:
        """Raise now, rather than in the first trial, if the study has other settings.

        A study of a later release raises, too; when sampling, it only warns.

        Raises:
            ValueError: As when sampling.
        """
        self._raise_error_if_multi_objective(study)
        with self.drawing.lock:
            self.drawing.check(study)

    def reseed_rng(self) -> None:
        """Do nothing to the draws: they are keyed, not carried. Reseed the inner sampler."""
        if self.independent_sampler is not None:
            self.independent_sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the inner sampler."""
        if self.independent_sampler is not None:
            self.independent_sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that theta describes; none while that is not known."""
        self._raise_error_if_multi_objective(study)
        with self.drawing.lock:
            state = self.drawing.state(study, trial)
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
        record = own_record(attrs, trial)  # a retry has one, and keeps its point
        drawn: dict[str, Any] = {}
        with self.drawing.lock:
            state = asked.state if asked.state is not None else self.drawing.state(study, trial)
            if record is None:
                record, drawn = self._draw(study, trial, state, asked.key)
            elif state.chain is not None and len(record.x or ()) == len(state.chain.space.names):
                drawn = state.chain.space.decode(np.array(record.x))
        if DRAW_KEY not in attrs and FIXED_PARAMS_KEY not in attrs:  # enqueued: no draw
            _optuna.set_system_attr(study, trial, DRAW_KEY, record.to_attr())
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
            if self.independent_sampler is not None:
                return self.independent_sampler.sample_independent(
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
        if self.independent_sampler is not None:
            self.independent_sampler.after_trial(study, trial, state, values)
        if getattr(trial, "constraints", None):  # an attribute since Optuna 5
            self.drawing.warn_once("constraints", "S2ESampler does not use constraints.")
        if state == TrialState.FAIL and FAILURE_KEY not in trial.system_attrs:
            self._warn_after_failures(study)
        self._local.asked = None

    def _key(self, study: Study, trial: FrozenTrial) -> Key:
        return Key(self.drawing.seed_of(study), trial.number)

    def _asked(self, study: Study, trial: FrozenTrial) -> _Asked:
        """Return what this thread knows of a trial, or what the trial's record says."""
        asked: _Asked | None = getattr(self._local, "asked", None)
        if asked is not None and asked.storage_and_trial == _identity(study, trial):
            return asked
        key = self._key(study, trial)
        record = own_record(_optuna.system_attrs(study, trial), trial)
        if record is None:
            return _Asked(_identity(study, trial), key)
        key = Key(key.seed if record.seed is None else record.seed, record.key)
        if record.generation == 0:
            return _Asked(_identity(study, trial), key)
        with self.drawing.lock:
            return _Asked(
                _identity(study, trial), key, chain=self.drawing.state(study, trial).chain
            )

    def _draw(
        self, study: Study, trial: FrozenTrial, state: State, key: Key
    ) -> tuple[Record, dict[str, Any]]:
        """Join the head's generation or open the next; return the record and the parameters."""
        drawing, chain = self.drawing, state.chain
        settings, ledger = drawing.settings_of(study, state), drawing.ledger(study)
        opens = chain is not None and len(state.pool) >= self.population_size
        if chain is None or not (opens or chain.head):
            return Record(trial.number, 0, seed=key.seed, settings=settings), {}
        if not opens and chain.head is not None:
            request = Request(trial.number, key, ledger.pending(chain), ledger.failed(chain))
            record = drawing.join(study, chain, chain.head, request)
        else:
            members = state.pool[: self.population_size]
            pending = ledger.pending(chain, members)
            request = Request(trial.number, key, pending, ledger.failed(chain))
            record = drawing.open(study, chain, members, settings, request)
        return record, chain.space.decode(np.array(record.x))

    def _warn_outside_theta(
        self, chain: Chain, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> None:
        if not self._warn_independent_sampling:
            return
        searched = chain.space.distributions.get(name)
        reason = (
            "none of the first trials had it, or not with one range"
            if searched is None
            else f"theta describes it as {searched}, it is now {distribution}, and trials with "
            "another range do not count as draws"
        )
        self.drawing.warn_once(
            f"independent {name}",
            f"The parameter {name!r} in trial {trial.number} is drawn independently of theta: "
            f"{reason}. Silence this with S2ESampler(warn_independent_sampling=False).",
        )

    def _warn_after_failures(self, study: Study) -> None:
        k = self.population_size
        finished = [t for t in _optuna.all_trials(study) if t.state.is_finished()]
        failed = finished[-(k - 1) :] if k > 1 else []
        if len(failed) == k - 1 and all(t.state == TrialState.FAIL for t in failed):
            self.drawing.warn_once(
                "failures",
                f"{k} trials in a row have failed. Failed trials do not count, so the search "
                "stands still while they go on.",
            )


def _identity(study: Study, trial: FrozenTrial) -> tuple[int, int]:
    return id(_optuna.storage_of(study)), _optuna.trial_id(trial)
