import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from scipy import stats

from optuna_s2e import simplex_params, suggest_simplex
from optuna_s2e.distributions import _simplex as simplex

SIZES = [2, 3, 4, 10, 100]


@pytest.mark.parametrize("k", SIZES)
def test_uniform_parameters_give_the_flat_dirichlet(k: int) -> None:
    u = np.random.default_rng(k).random((4000, k - 1))
    weights = simplex.weights_from_unit(u)
    for i in {0, k // 2, k - 1}:  # marginals of Dir(1, ..., 1) are Beta(1, k - 1)
        assert stats.kstest(weights[:, i], stats.beta(1, k - 1).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(weights[:, 0], weights[:, -1])[0, 1] - (-1 / (k - 1))) < 0.06


@pytest.mark.parametrize("k", SIZES)
def test_weights_are_the_textbook_sticks(k: int) -> None:
    u = np.random.default_rng(k).random(k - 1)
    stick, expected = 1.0, []
    for i in range(1, k):
        v = 1 - (1 - u[i - 1]) ** (1 / (k - i))
        expected.append(v * stick)
        stick *= 1 - v
    np.testing.assert_allclose(simplex.weights_from_unit(u), [*expected, stick], atol=1e-15)


@pytest.mark.parametrize("k", SIZES)
def test_every_corner_of_the_cube_is_valid(k: int) -> None:
    corners = np.random.default_rng(0).integers(0, 2, (50, k - 1)).astype(float)
    weights = simplex.weights_from_unit(corners)
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


@pytest.mark.parametrize("k", SIZES)
def test_encoding_round_trips(k: int) -> None:
    rng = np.random.default_rng(1)
    for concentration in (1.0, 20.0):
        w = rng.dirichlet(np.full(k, concentration), 300)
        again = simplex.weights_from_unit(simplex.unit_from_weights(w))
        np.testing.assert_allclose(again, w, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_encoding_of_few_very_uneven_weights_round_trips(k: int) -> None:
    w = np.random.default_rng(1).dirichlet(np.full(k, 0.2), 3000)
    again = simplex.weights_from_unit(simplex.unit_from_weights(w))
    np.testing.assert_allclose(again, w, atol=1e-6)  # 1 - u has 16 digits, its root has fewer


def test_one_hot_weights_round_trip() -> None:
    np.testing.assert_allclose(
        simplex.weights_from_unit(simplex.unit_from_weights(np.eye(5))), np.eye(5), atol=0
    )


def test_enqueued_weights_come_back_in_the_objective() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = []

    def objective(trial: optuna.Trial) -> float:
        seen.append(suggest_simplex(trial, "w", 4))
        return 0.0

    wanted = np.array([0.1, 0.0, 0.65, 0.25])
    study.enqueue_trial(simplex_params("w", wanted))
    study.optimize(objective, n_trials=1)
    np.testing.assert_allclose(seen[0], wanted, atol=1e-14)


def test_simplexes_are_recognised_by_name_alone() -> None:
    unit = FloatDistribution(0, 1)
    distributions = {
        "lr": unit,
        **dict.fromkeys(simplex.parameter_names("b", 12), unit),
        **dict.fromkeys(simplex.parameter_names("a.simplex3.1", 2), unit),
        "half.simplex3.1": unit,  # its second parameter is missing
        "wide.simplex2.1": FloatDistribution(0, 2),
        "whole.simplex2.1": IntDistribution(0, 1),
        "one.simplex1.1": unit,
    }
    found = simplex.find_simplexes(distributions)
    assert found == [["a.simplex3.1.simplex2.1"], simplex.parameter_names("b", 12)]
    assert found[1][0] == "b.simplex12.01"
    assert found[1] == sorted(found[1])


@pytest.mark.parametrize("k", [1, 0, -2, 1001, 2.5, True, "3"])
def test_bad_number_of_weights_is_refused(k: object) -> None:
    with pytest.raises(ValueError, match="k must be an int in"):
        suggest_simplex(optuna.trial.FixedTrial({}), "w", k)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [[0.5, 0.6], [-0.1, 1.1], [float("nan"), 1.0], [[1.0, 0.0]]])
def test_bad_weights_are_refused(weights: object) -> None:
    with pytest.raises(ValueError, match="weights must"):
        simplex_params("w", weights)  # type: ignore[arg-type]


def test_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name must not be empty"):
        suggest_simplex(optuna.trial.FixedTrial({}), "", 3)
