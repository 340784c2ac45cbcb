"""The study of the paper's statements with small numbers: each check can hold, and can fail."""

import sys

import numpy as np
import polynomials
import pytest
import theory

PROBLEMS = polynomials.PROBLEMS
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())


# Problems whose J is known


@every_problem
def test_known_mean_is_the_mean_of_draws(problem):
    rng, theta = np.random.default_rng(0), np.linspace(1.0, 4.0, len(problem.best))
    losses = problem.losses(problem.distribution.sample(theta, rng, 4_000))
    assert losses.min() > -1e-12
    error = losses.std() / np.sqrt(len(losses))
    assert losses.mean() == pytest.approx(problem.J(theta), abs=5 * error)
    assert problem.J(problem.best * 1e5) == pytest.approx(0.0, abs=1e-5)


@every_problem
def test_known_derivatives_are_those_of_the_mean(problem):
    theta, step = np.linspace(1.0, 4.0, len(problem.best)), 1e-5
    nudges = step * np.eye(len(theta))
    gradient = [(problem.J(theta + e) - problem.J(theta - e)) / (2 * step) for e in nudges]
    hessian = [
        (problem.gradient(theta + e) - problem.gradient(theta - e)) / (2 * step) for e in nudges
    ]
    np.testing.assert_allclose(problem.gradient(theta), gradient, atol=1e-9)
    np.testing.assert_allclose(problem.hessian(theta), hessian, atol=1e-9)


def test_known_mean_of_one_beta_is_its_closed_form():
    slope, (a, b) = PROBLEMS["slope"], (2.0, 3.0)
    assert slope.J(np.array([a, b])) == pytest.approx(a / (a + b))
    hessian = np.array([[-2 * b, a - b], [a - b, 2 * a]]) / (a + b) ** 3
    np.testing.assert_allclose(slope.hessian(np.array([a, b])), hessian)


# Statements


@every_problem
def test_proposition_1_holds_and_needs_both_terms(problem):
    errors = theory.proposition_1(problem, 15)
    assert errors["gradient"] < 6.0
    assert errors["hessian"] < 6.0
    assert errors["without"] > 20.0


def test_mean_is_not_coercive_and_its_gradient_not_lipschitz():
    for problem in PROBLEMS.values():
        found = theory.assumption_2(problem, 1)
        assert 0.0 < found["J"][-1] < 1e-5
        assert found["gradient"][-1] < 1e-4
        assert found["hessian"][2] > 50 * found["hessian"][1] > 2500 * found["hessian"][0]


def test_spectrum_counts_signs():
    assert theory.spectrum(np.eye(4), np.eye(4)) == [1.0, 0.0]
    assert theory.spectrum(np.diag([2.0, 0.0, 1e-12, -1.0]), np.eye(4)) == [0.25, 0.25]
    assert theory.spectrum(np.diag([2.0, -2.0]), np.eye(2)[:, :1]) == [1.0, 0.0]


def test_few_draws_in_the_papers_space_give_an_indefinite_hessian(monkeypatch):
    monkeypatch.setattr(theory, "POPULATIONS", [6, 200])
    found = theory.definiteness(PROBLEMS["paper's space"], 3)
    for name in ("raw", "centred"):
        few, many = found[name]["6"], found[name]["200"]
        assert few[0] < 0.25
        assert few[2] == many[2] == 0.0
        assert few[3] > 2 * many[3] > 2.0
    assert found["centred"]["6"][0] + found["centred"]["6"][1] <= 6 / 36  # rank 6


def test_exact_hessians_are_rarely_definite():
    assert theory.assumption_3(PROBLEMS["slope"], 10) == {"positive": 0.5, "definite": 0.0}
    assert 0.0 < theory.assumption_3(PROBLEMS["bowl"], 100)["definite"] < 0.1


def test_only_a_positive_definite_matrix_makes_a_step_go_downhill():
    found = theory.signs(PROBLEMS["three numbers"], 20)
    plus, minus, clipped, cubic, _ = (found[rule] for rule in theory.RULES)
    for k in ("6", "60", "600", "exact"):
        assert plus[k] + minus[k] == pytest.approx(1.0)
        assert 0.0 < minus[k] < 1.0
    assert clipped["exact"] == cubic["exact"] == 1.0
    assert found["towards"] > 0.9


def test_proposition_2_holds_with_the_reciprocal_of_eta_only():
    found = theory.proposition_2(PROBLEMS["bowl"], 20)
    assert found["corrected"] == [0.0] * len(theory.ETAS)
    assert found["printed"] == [float(eta < 1.0) for eta in theory.ETAS]


def test_a_larger_decrease_than_that_of_proposition_2_is_refused():
    run = theory.Descent(PROBLEMS["bowl"], L=0.34, least=0.5, n_steps=20)
    assert np.all(run.slack(0.5 - 0.17) >= 0.0)
    assert np.all(run.slack(2 * 0.5) < 0.0)


def test_descent_in_the_interior_is_the_newton_step():
    problem, least = PROBLEMS["bowl"], 0.3
    run = theory.Descent(problem, 0.3, least, 1, lambda theta: (-np.ones(4), np.eye(4)))
    np.testing.assert_allclose(run.theta, 1.0 + 1 / 0.3)
    held = theory.Descent(problem, 0.3, least, 1, lambda theta: (np.ones(4), np.eye(4)))
    assert held.theta.tolist() == [1.0] * 4


def test_theorem_1_bounds_the_shortest_step():
    found = theory.theorem_1(PROBLEMS["three numbers"], 3)
    observed, bound = np.array(found["observed"]), np.array(found["bound"])
    assert np.all(observed <= bound)
    assert observed[0] > bound[0] / 100
    fails, rises, excused, *_ = found["sampled"]["6"]
    assert fails > rises > excused == 0.0


def test_report_and_picture_are_made_from_the_committed_results(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["theory.py", "--report"])
    monkeypatch.setattr(theory, "PICTURE", tmp_path / "theory.png")
    theory.main()
    assert "Theorem 1: least |d|^2" in capsys.readouterr().out
    assert 10_000 < (tmp_path / "theory.png").stat().st_size < 150_000
