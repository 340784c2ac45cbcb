"""The Gaussian process against textbook formulas, written out with scipy and full inverses."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import lapack
from scipy.spatial.distance import cdist, pdist
from scipy.special import expit

from optuna_s2e import surrogate
from optuna_s2e.surrogate import _gp, clip_and_standardize
from optuna_s2e.surrogate._likelihood import LOG_LENGTHS, LOGITS, LogPosterior


def matern(a: np.ndarray, b: np.ndarray, length_scale: float) -> np.ndarray:
    r = np.sqrt(5) * cdist(a, b) / length_scale
    return np.asarray((1 + r + r**2 / 3) * np.exp(-r))


def observations(n: int, noise: float, seed: int, d: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.uniform(size=(n, d))
    return z, np.sin(5 * z[:, 0]) + noise * rng.normal(size=n)


def test_posterior_is_that_of_full_inverses() -> None:
    (z, losses), new = observations(20, 0.1, 0), np.random.default_rng(1).uniform(size=(7, 3))
    gp, (y, mean, deviation) = surrogate.fit(z, losses), clip_and_standardize(losses)
    k, among, between = (
        (1 - gp.noise_share) * matern(a, b, gp.length_scale)
        for a, b in ((new, new), (z, z), (new, z))
    )
    among += gp.noise_share * np.eye(20)
    inverse = np.linalg.inv(among)
    variance = (y @ inverse @ y + 1) / 21  # of an observation, with one pseudo-observation of 1
    posterior = k - between @ inverse @ between.T
    found = gp.predict(new)
    np.testing.assert_allclose(found[0], mean + deviation * (between @ inverse @ y), rtol=1e-9)
    np.testing.assert_allclose(found[1], deviation * np.sqrt(variance * np.diag(posterior)))
    np.testing.assert_allclose(gp.mean(new), found[0], rtol=1e-12)
    noise = deviation * np.sqrt(variance * gp.noise_share)
    assert gp.noise_deviation == pytest.approx(noise)


def test_a_smooth_function_is_recovered_from_noisy_losses() -> None:
    rng = np.random.default_rng(0)
    z = rng.random((80, 2))
    f = np.sin(4 * z[:, 0]) + z[:, 1] ** 2
    gp = surrogate.fit(z, f + 0.1 * rng.normal(size=80))
    mean, deviation = gp.predict(z)
    assert np.sqrt(np.mean((mean - f) ** 2)) < 0.06
    assert np.mean(np.abs(mean - f) < 2.5 * deviation) > 0.9
    assert 0.05 < gp.noise_deviation < 0.2


def test_mean_is_that_of_a_kernel_written_out_point_by_point() -> None:
    rng = np.random.default_rng(1)
    z, losses, new = rng.random((12, 3)), rng.normal(size=12), rng.random((5, 3))
    gp, (y, mean, deviation) = surrogate.fit(z, losses), clip_and_standardize(losses)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        r = math.sqrt(5) * math.dist(a, b) / gp.length_scale
        return (1 - gp.noise_share) * (1 + r + r * r / 3) * math.exp(-r)

    gram = np.array([[kernel(a, b) for b in z] for a in z]) + gp.noise_share * np.eye(12)
    cross = np.array([[kernel(a, b) for b in z] for a in new])
    expected = mean + deviation * cross @ np.linalg.solve(gram, y)
    np.testing.assert_allclose(gp.predict(new)[0], expected, rtol=1e-6, atol=1e-8)


def test_deviation_after_pending_draws_is_that_of_a_model_that_knows_them() -> None:
    (z, losses), rng = observations(20, 0.1, 0), np.random.default_rng(1)
    pending, new = rng.uniform(size=(5, 3)), rng.uniform(size=(7, 3))
    gp, every = surrogate.fit(z, losses), np.vstack([z, pending])
    k, among = ((1 - gp.noise_share) * matern(a, every, gp.length_scale) for a in (new, every))
    inverse = np.linalg.inv(among + gp.noise_share * np.eye(25))
    variance = (1 - gp.noise_share) - np.einsum("ij,jk,ik->i", k, inverse, k)
    unit = gp.noise_deviation / np.sqrt(gp.noise_share)
    np.testing.assert_allclose(gp.predict(new, pending)[1], unit * np.sqrt(variance), rtol=1e-6)
    np.testing.assert_array_equal(gp.predict(new, pending)[0], gp.predict(new)[0])


def bound(mean: np.ndarray, deviation: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Return bounds that do not depend on the points."""
    return np.asarray(mean - 2.0 * deviation)


@pytest.mark.parametrize("n_pending", [0, 1, 5])
@pytest.mark.parametrize(("n", "noise"), [(1, 0.0), (6, 0.0), (60, 0.3), (200, 0.0), (200, 0.1)])
def test_lowest_is_where_the_bound_is_lowest_with_all_deviations(
    n: int, noise: float, n_pending: int
) -> None:
    gp = surrogate.fit(*observations(n, noise, n))
    rng = np.random.default_rng(n_pending)
    pending = rng.uniform(size=(n_pending, 3))
    for size in (1, 15, 16, 17, 800):
        new = rng.uniform(size=(size, 3))
        expected = np.argmin(bound(*gp.predict(new, pending), None))
        assert gp.lowest(new, bound, pending) == expected
    twice = np.vstack([new, new])
    assert gp.lowest(twice, bound, pending) == expected  # the first of equals


def test_lowest_knows_a_bound_only_where_it_is_evaluated() -> None:
    """The bounds of all points are near the least one; those of most are far above it."""
    gp = surrogate.fit(*observations(60, 0.3, 0))
    new = np.random.default_rng(0).uniform(size=(800, 3))
    penalty = np.random.default_rng(1).uniform(size=800)

    def penalised(mean: np.ndarray, deviation: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        lowest = bound(mean, deviation, rows)
        return lowest if rows is None else lowest + penalty[rows]

    expected = np.argmin(bound(*gp.predict(new), None) + penalty)
    assert gp.lowest(new, penalised) == expected


@pytest.mark.parametrize(("n", "noise"), [(1, 0.0), (6, 0.0), (60, 0.3), (200, 0.0)])
@pytest.mark.parametrize("with_categories", [False, True])
def test_single_precision_is_on_the_safe_side(n: int, noise: float, with_categories: bool) -> None:
    z, losses = observations(n, noise, n)
    new = np.random.default_rng(7).uniform(-2, 3, size=(500, 3))
    new[:n] = z[:500]  # where the nearest draw is at no distance
    weights = None
    if with_categories:
        z, new = (np.column_stack([v, (8 * v[:, 1]).round() % 3]) for v in (z, new))
        weights = np.array([0, 0, 0, 0.7])
    gp = surrogate.fit(z, 1e200 * losses, weights)
    mean, deviation = gp.predict(new)
    least, most = gp._screen(new)
    assert np.all(least <= mean)
    unit = losses.std() or 1.0
    np.testing.assert_allclose(least / 1e200, mean / 1e200, atol=1e-3 * unit)  # and not by far
    assert np.all(most >= deviation)


def test_lowest_evaluates_few_points_in_double_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gp = surrogate.fit(*observations(200, 0.0, 0))
    new = np.random.default_rng(0).uniform(size=(800, 3))
    solve, solved, evaluated = lapack.dtrtrs, list[int](), list[int]()

    def counted(a: np.ndarray, b: np.ndarray, **options: Any) -> Any:
        solved.append(b.shape[1])
        return solve(a, b, **options)

    def counted_matern(r: np.ndarray) -> np.ndarray:
        evaluated.append(r.size)
        return exact(r)

    exact = _gp.matern
    monkeypatch.setattr(lapack, "dtrtrs", counted)
    monkeypatch.setattr(_gp, "matern", counted_matern)
    gp.predict(new)
    assert (sum(solved), sum(evaluated)) == (800, 800 * 200)
    solved.clear(), evaluated.clear()
    gp.lowest(new, bound)
    assert sum(solved) <= 64
    assert sum(evaluated) == 800 + 200 * sum(solved)  # the nearest draw of each, and these


def test_a_prediction_needs_one_matrix_of_covariances_at_a_time() -> None:
    gp = surrogate.fit(*observations(200, 0.1, 0))
    new = np.random.default_rng(0).uniform(size=(800, 3))
    tracemalloc.start()
    gp.predict(new)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 8 * 200 * 800  # bytes


def test_a_fit_factorises_in_place_once_per_grid_point_and_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factorise, copied = lapack.dpotrf, list[bool]()

    def counted(k: np.ndarray, **options: Any) -> Any:
        factor, failed = factorise(k, **options)
        copied.append(not np.shares_memory(k, factor))
        return factor, failed

    monkeypatch.setattr(lapack, "dpotrf", counted)
    surrogate.fit(*observations(30, 0.1, 0))
    assert copied == [False] * (len(LOG_LENGTHS) * len(LOGITS) + 1)


def test_a_fit_takes_length_scale_and_noise_from_the_grid() -> None:
    z, losses = observations(9, 0.3, 0)
    typical = float(np.sqrt(np.median(pdist(z) ** 2)))
    v = LogPosterior(pdist(z, "sqeuclidean")[None], clip_and_standardize(losses).y).best_of_grid()
    gp = surrogate.fit(z, losses)
    assert gp.length_scale == pytest.approx(typical * np.exp(v[1]))
    assert gp.noise_share == pytest.approx(expit(v[2]))


@pytest.mark.parametrize("shift", [0.1, 0.3, 0.7])
def test_the_length_scale_does_not_depend_on_how_distances_are_rounded(shift: float) -> None:
    """A point that rounding puts a little apart from itself would count in the median."""
    z, losses = observations(60, 0.3, 1)
    gp, moved = surrogate.fit(z, losses), surrogate.fit(z + shift, losses)
    assert moved.length_scale == pytest.approx(gp.length_scale, rel=1e-12)


def test_losses_are_clipped_above_the_median_and_standardised() -> None:
    losses = np.array([3.0, 1.0, 2.0, 50.0, np.inf, -np.inf])
    y, mean, deviation = clip_and_standardize(losses)
    clipped = [3.0, 1.0, 2.0, 5.5, 5.5, 1.0]  # median of 1, 2, 3, 50: 2.5; 2.5 + 2 * 1.5
    np.testing.assert_allclose(y, stats.zscore(clipped))
    assert (mean, deviation) == (pytest.approx(np.mean(clipped)), pytest.approx(np.std(clipped)))


@pytest.mark.parametrize(
    ("losses", "clipped"),
    [
        ([0, 0, 0, 0, 0, 1, 2, 50], [0, 0, 0, 0, 0, 1, 2, 6]),  # median of 1, 2, 50
        ([3, 3, 3, 8], [3, 3, 3, 8]),
        ([1, 1, 1, 0], [1, 1, 1, 0]),
        ([0, 0, 4, 9], [0, 0, 4, 6]),  # half of them only: the median of all is 2
        ([-5, -5, -5, math.inf, -4], [-5, -5, -5, -2, -4]),
    ],
)
def test_losses_that_tie_at_the_lowest_one_leave_the_others_above(
    losses: list[float], clipped: list[float]
) -> None:
    y, mean, deviation = clip_and_standardize(np.array(losses, dtype=float))
    np.testing.assert_allclose(y, stats.zscore(clipped), atol=1e-15)
    assert (mean, deviation) == (pytest.approx(np.mean(clipped)), pytest.approx(np.std(clipped)))


def test_neighbouring_floats_are_two_losses() -> None:
    """Their median is rounded to the lower one."""
    y = clip_and_standardize(np.array([1.0, math.nextafter(1, 2)])).y
    assert y[1] - y[0] >= 1
    assert np.isfinite(y).all()


def test_the_size_of_losses_does_not_matter() -> None:
    """Powers of two change no digit, up to the largest and down to the smallest floats."""
    z, losses = observations(20, 0.1, 0)
    losses[3] = 90.0
    gp, new = surrogate.fit(z, losses), np.random.default_rng(1).uniform(size=(7, 3))
    for exponent in (-1000, -540, 540, 1015):
        scale = 2.0**exponent
        scaled = surrogate.fit(z, scale * losses)
        for plain, found in zip(gp.predict(new), scaled.predict(new), strict=True):
            assert np.array_equal(scale * plain, found)
        assert np.array_equal(scale * gp.mean(new), scaled.mean(new))
        assert scaled.noise_deviation == scale * gp.noise_deviation


def test_an_enormous_penalty_counts_like_a_large_one() -> None:
    z, losses = observations(20, 0.1, 0)
    losses[3] = 90.0
    found = surrogate.fit(z, np.where(losses == 90.0, 1e300, losses))
    assert np.array_equal(found.mean(z), surrogate.fit(z, losses).mean(z))


@pytest.mark.parametrize("largest", [1.7e308, 5e-324, 1e-310])
def test_the_largest_and_the_smallest_losses_can_be_told_apart(largest: float) -> None:
    z = np.linspace(0, 1, 21)[:, None]
    losses = np.where(z[:, 0] < 0.5, -largest, largest)
    mean, deviation = surrogate.fit(z, losses).predict(np.array([[0.1], [0.9]]))
    np.testing.assert_allclose(mean / largest, [-1, 1], atol=0.1)
    assert np.isfinite(deviation).all()


@pytest.mark.parametrize(
    ("loss", "size"), [(7.0, 4.0), (0.1, 0.0625), (1e-300, 2.0**-997), (0, 1)]
)
def test_equal_losses_are_all_0_and_deviate_as_much_as_they_are_large(
    loss: float, size: float
) -> None:
    y, mean, deviation = clip_and_standardize(np.full(3, loss))
    assert (y.tolist(), mean, deviation) == ([0, 0, 0], loss, size)


def test_equal_points_are_no_trouble() -> None:
    same = surrogate.fit(np.full((4, 2), 0.5), np.arange(4.0))
    assert np.isfinite(same.predict(np.array([[0.5, 0.5], [0.1, 0.9]]))).all()


@pytest.mark.parametrize(
    ("features", "losses", "message"),
    [
        (np.ones(3), np.ones(3), r"features must have shape \(N, d\), but got \(3,\)"),
        (np.ones((3, 2)), np.ones(2), r"losses must have shape \(N,\) = \(3,\), but got \(2,\)"),
        (np.ones((0, 2)), np.ones(0), "losses must hold a finite number"),
        (np.ones((2, 2)), np.array([np.nan, np.inf]), "losses must hold a finite number"),
    ],
)
def test_losses_that_allow_no_fit_are_refused(
    features: np.ndarray, losses: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        surrogate.fit(features, losses)
