"""`S2ESampler`: Optuna's interface to the engine, for trials that are asked for one at a time.

The engine (`_engine.py`) decides what is drawn. The sampler knows Optuna's interface, the
arguments that users give, and which trial a thread samples.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e._attributes import FAILURE_KEY
from optuna_s2e._checks import check_choice, check_int
from optuna_s2e.distributions import draw_independent
from optuna_s2e.estimators import DEFAULT_ESTIMATOR, resolve
from optuna_s2e.history import Chain, Sources, State
from optuna_s2e.sampler._engine import Engine
from optuna_s2e.sampler._request import Drawn, Request


class _Current(NamedTuple):
    """The trial that this thread samples."""

    identity: tuple[int, int]  # of its storage and of the trial
    state: State | None = None  # as infer_relative_search_space read it for sample_relative
    drawn: Drawn | None = None  # as sample_relative drew it for sample_independent


class S2ESampler(BaseSampler):
    r"""Search with a distribution p_theta whose parameter moves by stochastic relaxation.

    Trials are drawn from p_theta, a product of Dirichlet (simplexes of `suggest_simplex`), Beta
    (floats and ints) and categorical distributions; theta = 1 is Optuna's uniform distribution.
    With `estimator="surrogate"`, p_theta proposes half of the candidates and a model chooses.
    Whenever K = `population_size` draws have completed since the last update, whichever theta
    they came from, the next trial opens a generation: theta_{m+1} = theta_m - rho B^{-1} g with
    the gradient g (Eq 7) of E_{p_theta}[f] and, for B, the Fisher information or the Hessian
    (Proposition 1), estimated from the K and, with importance weights, from earlier draws.

    All state lives in the trials (system attribute `s2e:draw`), so studies can be resumed,
    copied, and worked on by any number of processes that never wait for each other; the same
    seed in every worker is safe. `generations(study)` shows the state, `replay(study)`
    recomputes it.

    Some trials do not count as draws: enqueued, added, failed and pruned ones (unless
    `consider_pruned_trials`), and those of other samplers. Conditional parameters are searched
    like others. Parameters that none of the first K trials had are drawn uniformly.

    Args:
        population_size: K, the number of completed draws per update, at least 1.
        estimator: How theta moves, a name in `optuna_s2e.estimators.ESTIMATORS`. `"surrogate"`
            takes Newton steps on a model of the loss, which also picks the draws among candidates
            (`optuna_s2e.surrogate`). `"natural"`, `"newton"` (the Hessian's eigenvalues are
            bounded), `"cubic"` (cubic-regularised Newton) and `"gradient"` use the losses alone.
            The default is the best of them in `studies/`. `"paper"` is Algorithm 2 of the paper
            and nothing else: theta - rho H^{-1} g with Eq 7 and Proposition 1, the losses as they
            are, no reuse, no bounded eigenvalues, no trust region; only the box. If H is
            singular, its pseudo-inverse is taken. In `studies/` it is worse than random search.
        step_size: rho of Eq 8, > 0. None takes the default of the estimator: 3 for `"natural"`, 1
            for the others.
        max_kl: Trust region: the largest KL(p_{theta_{m+1}} || p_{theta_m}) of one update, in
            nats, > 0.
        curvature_bounds: (eta, L) of Assumption 3. Eigenvalues of the Hessian, relative to the
            Fisher information, are brought into this interval.
        theta_bounds: The box in which every component of theta stays. None takes the default of
            the estimator: (0.1, 1000) for `"paper"`, (1, 100) for the others. Without a box, the
            paper's steps leave theta > 0, where p_theta is defined.
        max_weight: Upper bound of the weight p_theta(x) / p_drawn(x) of a draw from an older
            theta.
        reuse: Number of earlier updates whose draws take part again, in [0, 1000], with
            importance weights or as data of the model. 0 uses the new draws alone, as the paper
            does. None takes the default of the estimator: 1000 for `"surrogate"`, 0 for
            `"paper"`, 10 for the others.
        sign: The sign of rho H^{-1} g in the step of `"paper"`: "-" as in Eq 9, or "+" as Eq 8
            prints it.
        source_studies: Earlier studies of the same space, on other data for example, that the
            model of `"surrogate"` learns from (warm start). Their completed trials count as draws
            of other tasks: each study's losses have a mean and a deviation of their own, and how
            alike the tasks are is fitted. Only trials whose parameters lie in the ranges of this
            study count. They are copied into the study when it begins, so the earlier studies may
            be deleted. A study that began without them cannot take them on.
        consider_pruned_trials: Whether pruned trials count, with their last reported value. They
            bias the gradient towards points that look good early.
        seed: Key of all random numbers, at least 0. None takes it from the study's name, which
            Optuna makes unique unless you choose it.
        on_config_change: What to do if the study was searched with other settings (any of the
            arguments above but `seed`), or another schedule space: `"refuse"` (ValueError naming
            both values) or `"adopt"` (the new settings rule from the next generation on; another
            space starts anew at theta = 1).
        independent_sampler: The sampler of the parameters that theta does not describe. None
            draws them uniformly.
        warn_independent_sampling: Whether to warn if a parameter is drawn outside of theta.

    Raises:
        ValueError: If an argument is out of range, or `population_size` is 1 and `reuse` 0, so
            that theta never moves (except with `"paper"`); when sampling, if the study has
            several objectives or other settings.

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
        ICML 2020.
    """

    def __init__(
        self,
        *,
        population_size: int = 6,
        estimator: str = DEFAULT_ESTIMATOR,
        step_size: float | None = None,
        max_kl: float = 1.0,
        curvature_bounds: tuple[float, float] = (0.1, 10.0),
        theta_bounds: tuple[float, float] | None = None,
        max_weight: float = 10.0,
        reuse: int | None = None,
        sign: str = "-",
        source_studies: Sequence[Study] | None = None,
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
            "sign": sign,
        }
        check_choice("on_config_change", on_config_change, ("refuse", "adopt"))
        settings = resolve({name: value for name, value in asked.items() if value is not None})
        for name in settings.without_effect:
            warnings.warn(
                f"{name} has no effect with estimator={settings.estimator!r} and "
                f"reuse={settings.reuse}. Leave it out, or change these.",
                stacklevel=2,
            )
        if source_studies and settings.estimator != "surrogate":
            warnings.warn(
                f"source_studies has no effect with estimator={settings.estimator!r}. Leave it "
                "out, or change the estimator.",
                stacklevel=2,
            )
            source_studies = None
        self._engine = Engine(
            settings,
            consider_pruned=bool(consider_pruned_trials),
            seed=None if seed is None else check_int("seed", seed, 0),
            adopt=on_config_change == "adopt",
            sources=Sources.of(source_studies) if source_studies else None,
        )
        self.independent_sampler = independent_sampler
        self._warn_independent_sampling = warn_independent_sampling
        self._last_state, self._in_a_row = TrialState.COMPLETE, 0  # of trials of this process
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def __str__(self) -> str:
        return f"S2ESampler({self._engine.estimator}, K={self.population_size})"

    @property
    def population_size(self) -> int:
        """K, completed draws per update."""
        return self._engine.population_size

    @property
    def settings(self) -> dict[str, Any]:
        """All that theta depends on besides the space, ready for JSON; without the seed."""
        return self._engine.settings

    def check(self, study: Study) -> None:
        """Raise now, rather than in the first trial, if the study has other settings.

        A study of a later release raises, too; when sampling, it only warns.

        Raises:
            ValueError: As when sampling.
        """
        self._raise_error_if_multi_objective(study)
        self._engine.check(study)

    def reseed_rng(self) -> None:
        """Reseed the inner sampler. The draws need no reseeding: their randomness is keyed."""
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
        state = self._engine.state(study, trial)
        self._local.current = _Current(_identity(study, trial), state=state)
        return dict(state.chain.space.distributions) if state.chain is not None else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the trial's point and record it."""
        self._raise_error_if_multi_objective(study)
        current = self._current(study, trial)
        drawn = self._engine.next(study, Request(trial, state=current.state))
        assert drawn is not None  # a trial that is asked for alone is always drawn
        self._local.current = current._replace(state=None, drawn=drawn)
        return {
            name: drawn.params[name]
            if name in drawn.params
            else draw_independent(drawn.key, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter of generation 0, or one that theta does not describe, uniformly."""
        self._raise_error_if_multi_objective(study)
        drawn = self._current(study, trial).drawn or self._engine.recall(study, trial)
        if drawn.chain is not None:
            searched = drawn.chain.space.distributions.get(param_name)
            if param_name in drawn.params and searched == param_distribution:
                return drawn.params[param_name]  # Optuna's check of large ints rounds them
            self._warn_outside_theta(drawn.chain, trial, param_name, param_distribution)
            if self.independent_sampler is not None:
                return self.independent_sampler.sample_independent(
                    study, trial, param_name, param_distribution
                )
        return draw_independent(drawn.key, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the inner sampler, and warn if trials do nothing but fail."""
        if self.independent_sampler is not None:
            self.independent_sampler.after_trial(study, trial, state, values)
        if getattr(trial, "constraints", None):  # an attribute since Optuna 5
            self._engine.warn_once("constraints", "S2ESampler does not use constraints.")
        k = self.population_size
        self._in_a_row = self._in_a_row + 1 if state == self._last_state else 1
        self._last_state = state
        if state == TrialState.FAIL and FAILURE_KEY not in trial.system_attrs:
            self._warn_in_a_row(study, state, k, "have failed", "")
        if state == TrialState.PRUNED and not self._engine.settings["consider_pruned_trials"]:
            remedy = " S2ESampler(consider_pruned_trials=True) lets pruned trials count."
            self._warn_in_a_row(study, state, 2 * k, "were pruned", remedy)
        self._local.current = None

    def _current(self, study: Study, trial: FrozenTrial) -> _Current:
        """Return what this thread knows of a trial: nothing, if it samples another one."""
        current: _Current | None = getattr(self._local, "current", None)
        identity = _identity(study, trial)
        return current if current and current.identity == identity else _Current(identity)

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
        self._engine.warn_once(
            f"independent {name}",
            f"The parameter {name!r} in trial {trial.number} is drawn independently of theta: "
            f"{reason}. Silence this with S2ESampler(warn_independent_sampling=False).",
        )

    def _warn_in_a_row(
        self, study: Study, state: TrialState, n: int, what: str, remedy: str
    ) -> None:
        """Warn if the last n trials, this one among them, ended in a state that does not count.

        The study is read only if those of this process did.
        """
        if self._in_a_row % n:
            return
        finished = [t for t in _optuna.all_trials(study) if t.state.is_finished()]
        others = finished[-(n - 1) :] if n > 1 else []
        if len(others) == n - 1 and all(t.state == state for t in others):
            self._engine.warn_once(
                what,
                f"{n} trials in a row {what}. They do not count, so the search stands still until "
                f"some complete.{remedy}",
            )


def _identity(study: Study, trial: FrozenTrial) -> tuple[int, int]:
    return id(_optuna.storage_of(study)), _optuna.trial_id(trial)


def engine_of(sampler: S2ESampler) -> Engine:
    """Return the engine of a sampler, for `optimize_batch`, which draws with it, too."""
    return sampler._engine
