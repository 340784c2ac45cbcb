"""p_theta parameter by parameter, against samples and scipy.stats."""

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy import stats

from optuna_s2e import S2ESampler, ScheduleSpace, suggest_simplex
from optuna_s2e.analysis import Snapshot
from optuna_s2e.analysis._theta_summary import keep_rate_band, summarize_theta
from optuna_s2e.distributions import SearchSpace


def test_numbers_have_mean_and_deviation_of_their_beta() -> None:
    space = SearchSpace.of({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}, {})
    thetas = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 5.0, 0.5, 3.0]])
    proportions, marginals = summarize_theta(space, thetas)
    assert proportions == []
    assert [m.name for m in marginals] == ["x", "y"]
    for i, marginal in enumerate(marginals):
        expected = stats.beta(thetas[:, 2 * i], thetas[:, 2 * i + 1])
        np.testing.assert_allclose(marginal.mean, expected.mean())
        np.testing.assert_allclose(marginal.deviation, expected.std())


def test_simplexes_and_categories_have_expected_weights() -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=4, seed=0))

    def objective(trial: optuna.Trial) -> float:
        weights = suggest_simplex(trial, "w", 3)
        return float(weights[0]) + (trial.suggest_categorical("kind", ["a", "b"]) == "a")

    study.optimize(objective, n_trials=9)
    snapshot = Snapshot.of(study)
    kind, w = sorted(snapshot.theta_summary.proportions, key=lambda p: p.name)
    assert (kind.name, kind.labels) == ("kind", ("kind = a", "kind = b"))
    assert (w.name, w.labels) == ("w", ("w 1", "w 2", "w 3"))
    for proportions in (kind, w):
        assert proportions.means.shape == (3, len(proportions.labels))
        np.testing.assert_allclose(proportions.means.sum(axis=1), 1)
        np.testing.assert_allclose(proportions.means[0], 1 / len(proportions.labels))


def test_the_band_holds_ninety_percent_of_the_schedules() -> None:
    schedules = ScheduleSpace(20)
    tags = {n: d.choices[0] if isinstance(d, CategoricalDistribution) else d.low
            for n, d in schedules.distributions.items() if d.single()}  # type: ignore[union-attr]  # fmt: skip
    space = SearchSpace.of(schedules.distributions, tags)
    theta = space.distribution.uniform_theta()
    band = keep_rate_band(schedules, space, theta, 20)
    assert band is not None
    assert band.t.tolist() == list(range(20))
    draws = space.distribution.sample(theta, np.random.default_rng(1), 2000)
    rates = np.array(
        [
            schedules.from_params(space.decode(x) | tags).keep_rates
            for x in space.coordinates(draws)
        ]
    )
    inside = (rates >= band.low) & (rates <= band.high)
    # 256 draws estimate a share of 0.9 with a standard deviation of 0.019
    assert inside.mean(axis=0).min() > 0.9 - 4 * 0.019
    np.testing.assert_allclose(band.mean, rates.mean(axis=0), atol=4 * 0.5 / np.sqrt(256))


def test_theta_of_another_space_has_no_band() -> None:
    space = SearchSpace.of({"x": FloatDistribution(0, 1)}, {})
    theta = space.distribution.uniform_theta()
    assert keep_rate_band(ScheduleSpace(20), space, theta, 5) is None


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_parameter_that_was_fixed_from_the_start_leaves_no_band() -> None:
    own = S2ESampler(population_size=4, estimator="natural", seed=0)
    study = optuna.create_study(sampler=optuna.samplers.PartialFixedSampler({"R.c": 1.0}, own))
    study.optimize(lambda t: float(ScheduleSpace(20).suggest(t).keep_rates.mean()), n_trials=5)
    snapshot = Snapshot.of(study)
    assert snapshot.space is not None
    assert snapshot.keep_rate_band(5) is None
