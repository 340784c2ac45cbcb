"""`estimator="paper"`: the paper's Algorithm 2 and nothing else, against loops over draws."""

import numpy as np
import optuna
import pytest
from newton_problems import BETA, DISTRIBUTIONS, HARD_LOSSES, every_distribution, update
from scipy.special import polygamma, psi

from optuna_s2e import S2ESampler, generations, replay, suggest_simplex
from optuna_s2e.distributions import Beta, Categorical, SearchDistribution
from optuna_s2e.estimators import newton, resolve

PAPER = resolve({"estimator": "paper"})


# --- the reference: Algorithm 2 for a product of Dirichlets, with a loop for each sum -----------


def log_density_derivatives(theta, w):
    """Return gradient and Hessian of log Dirichlet(w; theta) by theta."""
    total = theta.sum()
    gradient = np.array([psi(total) - psi(t) + np.log(x) for t, x in zip(theta, w, strict=True)])
    hessian = np.full((len(theta), len(theta)), polygamma(1, total))
    for i, t in enumerate(theta):
        hessian[i, i] -= polygamma(1, t)
    return gradient, hessian


def reference_step(theta, points, losses, rho, box):
    """Return the theta of Eq 9 (rho > 0) or Eq 8 (rho < 0), and the Hessian.

    A point is a list of simplexes, and theta has one parameter for each of their weights.
    """
    n, K = len(theta), len(points)
    g, H = np.zeros(n), np.zeros((n, n))
    for point, f in zip(points, losses, strict=True):
        score, curvature, i = np.zeros(n), np.zeros((n, n)), 0
        for w in point:
            block = slice(i, i + len(w))
            score[block], curvature[block, block] = log_density_derivatives(theta[block], w)
            i += len(w)
        g += f * score / K  # Eq 7
        H += f * (np.outer(score, score) + curvature) / K  # Proposition 1
    return np.clip(theta - rho * np.linalg.inv(H) @ g, *box), H


# --- toy tasks: the objective notes its point, so that nothing of the package is needed ---------


def floats(trial):
    x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(3)]
    trial.set_user_attr("point", [[v, 1 - v] for v in x])
    return sum((v - 0.3) ** 2 for v in x)


def simplex_and_float(trial):
    w, x = suggest_simplex(trial, "w", 3), trial.suggest_float("x", 0, 1)
    inner = np.maximum(w, 1e-6)  # no draw lies on the edge, where scores are infinite
    trial.set_user_attr("point", [(inner / inner.sum()).tolist(), [x, 1 - x]])
    return 0.4 + abs(w[0] - 0.6) + x


def of_both_signs(trial):
    x = trial.suggest_float("x", 0, 1)
    trial.set_user_attr("point", [[x, 1 - x]])
    return (x - 0.4) ** 2 - 0.05


OPTIONS = [{}, {"sign": "+"}, {"step_size": 0.3, "theta_bounds": (1.0, 40.0)}]


@pytest.mark.parametrize("objective", [floats, simplex_and_float, of_both_signs])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("K", [1, 2, 6])
def test_search_is_the_papers_algorithm_2_step_by_step(objective, options, K):
    rho = options.get("step_size", 1.0) * (-1 if options.get("sign") == "+" else 1)
    box = options.get("theta_bounds", (0.1, 1000.0))
    signs, clipped = set(), []
    for seed in range(2):
        sampler = S2ESampler(estimator="paper", population_size=K, seed=seed, **options)
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=6 * K + 1)
        points = [[np.array(w) for w in t.user_attrs["point"]] for t in study.trials]
        losses = [t.value for t in study.trials]
        thetas = [g.theta for g in generations(study)]
        assert len(thetas) == 7
        assert set(thetas[0]) == {1.0}
        for m in range(6):
            batch = slice(m * K, (m + 1) * K)
            theta, H = reference_step(thetas[m], points[batch], losses[batch], rho, box)
            digits_lost = max(1.0, np.linalg.cond(H) / 100)  # where theta reaches its bounds
            np.testing.assert_allclose(thetas[m + 1], theta, rtol=1e-12 * digits_lost)
            signs |= set(np.sign(np.linalg.eigvalsh(H)))
            clipped.append(np.isin(theta, box).any())
        assert [g.theta.tolist() for g in replay(study)] == [t.tolist() for t in thetas]
    assert signs == {-1.0, 1.0}  # indefinite, and clipped at times
    assert any(clipped) or "theta_bounds" not in options


# --- what the paper leaves open ------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["-", "+"])
def test_singular_hessian_takes_its_pseudo_inverse(sign):
    rng = np.random.default_rng(0)
    for rank in (0, 1, 3, 5):
        root, g = rng.normal(size=(5, rank)), rng.normal(size=5)
        H = root @ np.diag(rng.choice([-1.0, 1.0], rank)) @ root.T
        settings = resolve({"estimator": "paper", "sign": sign})
        step = newton.inverse_direction(g, H, np.eye(5), settings)
        expected = np.linalg.pinv(H, rcond=1e-10) @ g * (1 if sign == "+" else -1)
        np.testing.assert_allclose(step, expected, rtol=1e-9, atol=1e-12)


def test_categories_make_every_hessian_singular_and_theta_moves_all_the_same():
    distribution = DISTRIBUTIONS[2]
    theta, X = np.array([1.0, 2.0, 3.0, 4.0]), np.array([[0.0], [3.0], [3.0], [1.0]])
    f = np.array([4.0, 1.0, 2.0, 3.0])
    scores, hessians = distribution.score(theta, X), distribution.hessian(theta, X)
    H = newton.hessian_estimate(f, scores, hessians, np.ones(4))
    assert np.linalg.matrix_rank(H) == 2
    moved = theta - np.linalg.pinv(H) @ newton.gradient_estimate(f, scores, np.ones(4))
    step = update(distribution, theta, X, f, distribution.log_density(theta, X), PAPER)
    np.testing.assert_allclose(step.theta, distribution.project(moved, (0.1, 1000.0)), rtol=1e-9)


def test_losses_of_zero_leave_theta_and_other_equal_losses_do_not():
    theta, X = np.array([2.0, 5.0]), np.array([[0.2], [0.4], [0.9]])
    drawn = BETA.log_density(theta, X)
    assert np.array_equal(update(BETA, theta, X, [0.0] * 3, drawn, PAPER).theta, theta)
    one, seven = (update(BETA, theta, X, [f] * 3, drawn, PAPER).theta for f in (1.0, 7.0))
    assert not np.allclose(one, theta, rtol=0.1)
    np.testing.assert_allclose(seven, one, rtol=1e-12)  # f cancels


def test_a_constant_added_to_the_losses_changes_the_step_and_a_factor_does_not():
    theta, X, f = np.ones(2), np.array([[0.2], [0.4], [0.9]]), np.array([1.0, 2.0, 4.0])
    drawn = np.zeros(3)
    plain, added, halved, tiny, huge = (
        update(BETA, theta, X, losses, drawn, PAPER).theta
        for losses in (f, f + 1.0, f / 2, f * 2.0**-900, f * 2.0**900)
    )
    assert not np.allclose(added, plain, rtol=1e-2)
    assert plain.tolist() == halved.tolist() == tiny.tolist() == huge.tolist()


@every_distribution
@pytest.mark.parametrize("losses", HARD_LOSSES.values(), ids=HARD_LOSSES.keys())
@pytest.mark.parametrize("sign", ["-", "+"])
def test_hard_losses_leave_theta_finite_and_in_the_box(distribution, losses, sign):
    settings, rng = resolve({"estimator": "paper", "sign": sign}), np.random.default_rng(0)
    for theta in (
        distribution.uniform_theta(),
        distribution.project(rng.uniform(0, 1000, distribution.n_theta), (0.1, 1000.0)),
    ):
        X = distribution.sample(theta, rng, len(losses))
        for points in (X, np.repeat(X[:1], len(losses), axis=0)):
            drawn = distribution.log_density(theta, points)
            step = update(distribution, theta, points, losses, drawn, settings)
            assert np.all((step.theta >= 0.1) & (step.theta <= 1000.0))
            assert all(np.isfinite(number) for number in step[1:])


def test_thousands_of_categories_need_no_matrix_of_them():
    distribution = SearchDistribution((Categorical(20_000), Beta()))
    theta, rng = distribution.uniform_theta(), np.random.default_rng(0)
    X = distribution.sample(theta, rng, 6)
    drawn = distribution.log_density(theta, X)
    step = update(distribution, theta, X, X[:, 1], drawn, PAPER)  # 20,000^2 floats: 3 GB
    assert step.step_scale == 1.0
    assert not np.array_equal(step.theta, theta)


def test_draws_of_an_older_theta_are_weighted():
    theta, older, rng = np.array([2.0, 3.0]), np.array([1.0, 1.0]), np.random.default_rng(0)
    X = BETA.sample(older, rng, 6)
    w = np.exp(BETA.log_density(theta, X) - BETA.log_density(older, X))
    f = rng.uniform(size=6)
    scores, hessians = BETA.score(theta, X), BETA.hessian(theta, X)
    g = np.mean((w * f)[:, None] * scores, axis=0)
    terms = scores[:, :, None] * scores[:, None, :] + hessians
    H = np.mean((w * f)[:, None, None] * terms, axis=0)
    step = update(BETA, theta, X, f, BETA.log_density(older, X), PAPER)
    expected = np.clip(theta - np.linalg.solve(H, g), 0.1, 1000.0)
    np.testing.assert_allclose(step.theta, expected, rtol=1e-10)
    assert step.effective_sample_size < 6.0
