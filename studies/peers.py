"""Searchers from other packages, as Optuna samplers: BoTorch's qLogNEI and SMAC3.

They come with the extra `studies` (`pip install -e '.[studies]'`). HEBO is not among them: its
newest release, 0.3.6, depends on numpy<1.25, and this package on numpy>=1.26, so that pip refuses
to install both ("hebo 0.3.6 depends on numpy<1.25 and >=1.16", ResolutionImpossible).
"""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

Space = dict[str, FloatDistribution]


class _Peer(BaseSampler):
    """A sampler of float parameters that sees the unit cube. It minimises one objective."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._search_space = IntersectionSearchSpace()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the float parameters that all completed trials share."""
        shared = self._search_space.calculate(study)
        return {
            name: d for name, d in shared.items()
            if isinstance(d, FloatDistribution) and not d.single()
        }  # fmt: skip

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the next point."""
        if not search_space:
            return {}
        unit = self.next_point(study, trial.number, search_space)
        return {
            n: _decode(d, float(u)) for (n, d), u in zip(search_space.items(), unit, strict=True)
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Draw uniformly."""
        d = param_distribution
        return _decode(d, self._rng.random()) if isinstance(d, FloatDistribution) else d.low

    @abstractmethod
    def next_point(self, study: Study, number: int, space: Space) -> np.ndarray:
        """Return the point of a trial in the unit cube, (d,)."""


def _decode(d: FloatDistribution, u: float) -> float:
    value = d.low * (d.high / d.low) ** u if d.log else d.low + (d.high - d.low) * u
    return float(np.clip(value, d.low, d.high))


def _encode(d: FloatDistribution, value: float) -> float:
    if d.log:
        return float(np.log(value / d.low) / np.log(d.high / d.low))
    return (value - d.low) / (d.high - d.low)


def _points(trials: Sequence[FrozenTrial], space: Space) -> np.ndarray:
    rows = [[_encode(d, t.params[n]) for n, d in space.items()] for t in trials]
    return np.array(rows).reshape(len(trials), len(space))


class QLogNEISampler(_Peer):
    """BoTorch's noisy expected improvement, its default for noisy objectives.

    The first `n_startup` trials are uniform. Trials that run are pending points.
    """

    def __init__(self, *, seed: int, n_startup: int = 6) -> None:
        super().__init__(seed=seed)
        self._n_startup = n_startup
        self._fitted: tuple[int, Any, Any] = (0, None, None)  # completed trials, model, points

    def next_point(self, study: Study, number: int, space: Space) -> np.ndarray:
        """Maximise qLogNEI at one point, given those that run."""
        import torch
        from botorch import fit_gpytorch_mll
        from botorch.acquisition.logei import qLogNoisyExpectedImprovement
        from botorch.models import SingleTaskGP
        from botorch.optim import optimize_acqf
        from gpytorch.mlls import ExactMarginalLogLikelihood

        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        running = [
            t for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if space.keys() <= t.params.keys()
        ]  # fmt: skip
        if len(done) < self._n_startup:
            return self._rng.random(len(space))
        with torch.random.fork_rng():
            torch.manual_seed(int(self._rng.integers(2**31)))
            if self._fitted[0] != len(done):  # once per batch
                x = torch.tensor(_points(done, space))
                y = torch.tensor([[-t.value] for t in done], dtype=torch.float64)
                model = SingleTaskGP(x, (y - y.mean()) / y.std().clamp_min(1e-9))
                fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
                self._fitted = len(done), model, x
            _, model, x = self._fitted
            acquisition = qLogNoisyExpectedImprovement(
                model, x, X_pending=torch.tensor(_points(running, space)) if running else None,
                prune_baseline=True,
            )  # fmt: skip
            bounds = torch.stack([torch.zeros(len(space)), torch.ones(len(space))]).double()
            best, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=4, raw_samples=128)
        return np.asarray(best[0].numpy())


class SMACSampler(_Peer):
    """SMAC3's facade for hyper-parameters (random forests), asked and told.

    It trains each point once, as all searchers do here (to SMAC the loss is deterministic; its
    forests average over the noise). Its first `n_startup` points are Sobol's. Trials that it did
    not ask for, the first one or the first batch, are told all the same.
    """

    def __init__(self, *, seed: int, n_trials: int = 60, n_startup: int = 6) -> None:
        super().__init__(seed=seed)
        self._n_trials, self._n_startup = n_trials, n_startup
        self._facade: Any = None
        self._asked: dict[int, Any] = {}
        self._told: set[int] = set()

    def next_point(self, study: Study, number: int, space: Space) -> np.ndarray:
        """Tell SMAC what is new, and ask it."""
        import smac
        from ConfigSpace import Configuration, ConfigurationSpace, Float

        if self._facade is None:
            cube = ConfigurationSpace(seed=self._seed)
            cube.add([Float(n, (0.0, 1.0)) for n in space])
            scenario = smac.Scenario(
                cube, n_trials=self._n_trials, seed=self._seed, deterministic=True,
                output_directory=Path(tempfile.mkdtemp(prefix="smac")),
            )  # fmt: skip
            facade = smac.HyperparameterOptimizationFacade
            self._facade = facade(
                scenario, lambda config, seed: 0.0, overwrite=True, logging_level=False,
                initial_design=facade.get_initial_design(scenario, n_configs=self._n_startup),
            )  # fmt: skip
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if trial.number not in self._told:
                self._told.add(trial.number)
                info = self._asked.get(trial.number) or smac.runhistory.TrialInfo(
                    Configuration(
                        self._facade.scenario.configspace,
                        dict(zip(space, _points([trial], space)[0].tolist(), strict=True)),
                    ),
                    seed=0,
                )
                self._facade.tell(info, smac.runhistory.TrialValue(cost=trial.value))
        info = self._facade.ask()
        self._asked[number] = info
        return np.array([info.config[n] for n in space])
