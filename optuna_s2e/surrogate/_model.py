"""The model of the loss over a search space: Gaussian-process regression on features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.distance import pdist

from optuna_s2e._typing import BoolArray, FloatArray, IntArray
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.surrogate._conditions import Conditions, find_conditions
from optuna_s2e.surrogate._features import feature_groups, featurize, numbered_features
from optuna_s2e.surrogate._gp import GaussianProcess, clip_and_standardize, fit
from optuna_s2e.surrogate._likelihood import ard_scales

LEAST_AGREEMENT = 1.0  # correlation, in units of its standard error
LEAST_SPREAD = 0.3  # of a task's losses at the draws of another, in units of their deviation
TASK_DISTANCES = (0.0, 0.5, 1.0, 2.0, 5.0)  # in units of the median distance of the draws


@dataclass(frozen=True)
class Model:
    """A model of the loss over a space; make one with `Model.fit`.

    Attributes:
        space: Space of the draws.
        x: Coordinates of the draws that it was fitted to, those of other tasks last, (N, d).
        conditions: Where each parameter of the space is active.
        scales: Factors of the features, from `ard_scales`, (n_features,). Numbers of categories
            stay as they are; `gp.category_weights` has the squares of their factors.
        gp: Regression of the losses on `featurize(x)`.
        with_tasks: Whether the last feature is the number of the draw's task.

    Example:
        >>> import numpy as np
        >>> from optuna.distributions import FloatDistribution
        >>> from optuna_s2e.distributions import SearchSpace
        >>> from optuna_s2e.surrogate import Model
        >>> space = SearchSpace.of({"a": FloatDistribution(0, 1)})
        >>> x = np.linspace(0.1, 0.9, 9)[:, None]
        >>> model = Model.fit(space, x, active=x > 0, losses=x[:, 0] ** 2)
        >>> abs(float(model.gp.mean(model.featurize(np.array([[0.5]])))[0]) - 0.25) < 0.02
        True
    """

    space: SearchSpace
    x: FloatArray
    conditions: Conditions
    scales: FloatArray
    gp: GaussianProcess
    with_tasks: bool = False

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        x: FloatArray,
        *,
        active: BoolArray,
        losses: FloatArray,
        tasks: IntArray | None = None,
    ) -> Model:
        """Fit a model to draws.

        Draws of other tasks, such as earlier studies, can help. A model of each other task
        predicts the losses of the draws of task 0. The task counts if these predictions rise with
        the true losses. Its losses are then brought to the mean and deviation of task 0. The
        distance between two tasks is the one of `TASK_DISTANCES` with the largest marginal
        likelihood.

        Args:
            space: Space of the draws.
            x: Coordinates of the draws, (N, d).
            active: Which coordinates the objective asked for, (N, d).
            losses: Losses of the draws, (N,), as in `surrogate.fit`.
            tasks: Number of the task of each draw, (N,). Task 0 is modelled. None means that all
                draws are of task 0.

        Returns:
            The fitted model.

        Raises:
            ValueError: If there is no finite loss, a shape is wrong, the space's tags name an
                unknown schedule space, or the algebra breaks down (LinAlgError).
        """
        z, numbered = featurize(space, x, active), numbered_features(space)
        if tasks is not None:
            kept, losses = _alike(z, losses, tasks, numbered.astype(np.float64))
            z, x, active, losses, tasks = z[kept], x[kept], active[kept], losses[kept], tasks[kept]
        whole = _of_tasks_with_all(active, tasks)
        conditions = find_conditions(space, x[whole], active[whole])
        y = clip_and_standardize(losses).y
        scales = ard_scales(z, y, feature_groups(space), numbered)
        weights = np.where(numbered, scales**2, 0.0)
        scales = np.where(numbered, 1.0, scales)
        if tasks is None or not tasks.any():
            return cls(space, x, conditions, scales, fit(z * scales, losses, weights))
        z = np.column_stack([z * scales, tasks])
        typical = float(np.median(pdist(z[:, :-1][:, ~numbered]))) or 1.0
        fits = (
            fit(z, losses, np.append(weights, (distance * typical) ** 2))
            for distance in TASK_DISTANCES
        )
        gp = max(fits, key=lambda gp: gp.log_likelihood)  # the first, so the nearest, of equals
        return cls(space, x, conditions, np.append(scales, 1.0), gp, with_tasks=True)

    def featurize(self, x: FloatArray, active: BoolArray | None = None) -> FloatArray:
        """Return the features of draws, times `scales`.

        Args:
            x: Coordinates of the draws, (N, d).
            active: Which coordinates the objective asked for, (N, d). None takes what the
                conditions predict, for draws that were not trained.

        Returns:
            Features as the regression takes them, (N, n_features).
        """
        active = self.conditions.active(x) if active is None else active
        z = featurize(self.space, x, active)
        if self.with_tasks:
            z = np.column_stack([z, np.zeros(len(z))])
        return z * self.scales

    @cached_property
    def mean_at_draws(self) -> FloatArray:
        """Expected loss, in the task to model, at the draws that it was fitted to, (N,)."""
        if not self.with_tasks:
            return self.gp.mean_at_draws
        own = self.gp.features.copy()
        own[:, -1] = 0.0
        return self.gp.mean(own)


def _of_tasks_with_all(active: BoolArray, tasks: IntArray | None) -> BoolArray:
    """Return the draws from which the conditions of parameters are learned, (N,).

    If no draw of a task has a parameter, the task did not search it, and its draws are left out.
    """
    if tasks is None:
        return np.ones(len(active), dtype=bool)
    partial = [t for t in np.unique(tasks) if t and not active[tasks == t].any(axis=0).all()]
    return ~np.isin(tasks, partial)


def _alike(
    z: FloatArray, losses: FloatArray, tasks: IntArray, weights: FloatArray
) -> tuple[BoolArray, FloatArray]:
    """Return which draws teach task 0, and all losses in the units of task 0, (N,) both.

    The regression of a task predicts the losses of the n draws of task 0. The task teaches if the
    correlation of predictions and losses exceeds LEAST_AGREEMENT / sqrt(n). The predictions are
    brought to the mean and the deviation of the losses, so that tasks whose draws lie elsewhere
    can be compared.
    """
    own = tasks == 0
    y, mean, deviation = clip_and_standardize(losses[own])
    kept, mapped = own.copy(), losses.copy()
    for task in np.unique(tasks[~own]):
        of_task = tasks == task
        gp = fit(z[of_task], losses[of_task], weights)
        unit = gp.unit  # so that no square overflows
        expected = gp.mean(z[own]) / unit
        shape = expected - expected.mean()
        if y @ shape > LEAST_AGREEMENT * np.linalg.norm(shape):
            spread = float(np.hypot(expected.std(), gp.noise_deviation / unit))
            least = LEAST_SPREAD * clip_and_standardize(losses[of_task]).deviation / unit
            mapped[of_task] /= unit
            mapped[of_task] -= expected.mean()
            mapped[of_task] *= deviation / max(spread, least)
            mapped[of_task] += mean
            kept |= of_task
    return kept, mapped
