"""Equal blocks are computed together."""

from collections import Counter

import numpy as np

from optuna_s2e.distributions import Beta, Categorical, SearchDistribution


def test_equal_blocks_are_one_call_and_cost_as_much_as_one_by_one(monkeypatch):
    """With the columns of all blocks for each, the work would grow with their square."""
    calls, numbers = Counter(), Counter()
    for name in ("tangents", "score_sum", "score_along", "hessian_along"):
        original = getattr(Categorical, name)

        def counted(self, *args, original=original, name=name):
            calls[name] += 1
            numbers[name] += args[-1].size  # of the basis
            return original(self, *args)

        monkeypatch.setattr(Categorical, name, counted)
    for n_blocks in (1, 40):
        calls.clear(), numbers.clear()
        many = SearchDistribution((*[Categorical(5)] * n_blocks, Beta(), Categorical(4)))
        rng = np.random.default_rng(2)
        theta, weights = rng.uniform(0.7, 6.0, many.n_theta), rng.normal(size=30)
        points = many.sample(theta, rng, 30)
        gradient = many.score_sum(theta, points, weights)
        basis, _ = many.tangents(theta, gradient, np.ones(many.n_theta, dtype=bool))
        along = many.score_along(theta, points, basis)
        np.testing.assert_allclose(along, many.score(theta, points) @ basis, atol=1e-12)
        many.hessian_along(theta, points, weights, basis)
        assert set(calls.values()) == {2}  # of five categories, and of four
        for name in ("score_along", "hessian_along"):
            assert numbers[name] == 10 * n_blocks + 8
