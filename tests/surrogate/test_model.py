"""The model over a space: it is the regression on scaled features, and knows the conditions."""

from __future__ import annotations

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution

from optuna_s2e import surrogate
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.surrogate import Model

BRANCHES = SearchSpace.of({
    "depth": FloatDistribution(0, 1),
    "model": CategoricalDistribution(["tree", "net"]),
})  # fmt: skip


def test_only_parameters_that_matter_are_stretched() -> None:
    space = SearchSpace.of({f"x{i}": FloatDistribution(0, 1) for i in range(12)})
    x = np.random.default_rng(0).uniform(0.01, 0.99, size=(80, 12))
    losses = (x[:, 5] - 0.3) ** 2
    model = Model.fit(space, x, active=np.ones(x.shape, dtype=bool), losses=losses)
    assert int(np.argmax(model.scales)) == 5
    np.testing.assert_allclose(model.featurize(x), x * model.scales, rtol=1e-14)
    gp = surrogate.fit(x * model.scales, losses)
    np.testing.assert_array_equal(model.gp.mean(model.gp.features), gp.mean(gp.features))


def test_inactive_parameters_have_no_influence() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(size=40), rng.integers(0, 2, 40)])
    active = np.column_stack([x[:, 1] == 0.0, np.ones(40, dtype=bool)])
    losses = np.where(active[:, 0], x[:, 0] ** 2, 0.5)
    model = Model.fit(BRANCHES, x, active=active, losses=losses)
    nets, trees = np.array([[0.1, 1.0], [0.9, 1.0]]), np.array([[0.1, 0.0], [0.9, 0.0]])
    assert np.ptp(model.gp.mean(model.featurize(nets))) == 0.0
    np.testing.assert_allclose(model.gp.mean(model.featurize(trees)), [0.01, 0.81], atol=0.05)
    as_told = model.featurize(nets, np.ones(nets.shape, dtype=bool))
    assert np.ptp(model.gp.mean(as_told)) > 0.0
