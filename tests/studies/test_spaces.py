"""The studies of spaces and losses with small numbers: formulas, picks, and what is reported."""

import sys
from dataclasses import replace
from functools import partial

import losses
import numpy as np
import optuna
import pytest
import runs
import search_spaces
import spaces
import tasks
import torch

from optuna_s2e import ScheduleSpace, coteaching_schedule, recommend, table1_schedule
from optuna_s2e.coteaching import last_epochs_mean, train_batch
from optuna_s2e.distributions import unit_from_weights

every_space = pytest.mark.parametrize("space", spaces.SPACES.values(), ids=spaces.SPACES.keys())


# Spaces


@every_space
@pytest.mark.parametrize("n_epochs", [2, 30, 200])
def test_every_point_of_the_cube_is_a_schedule(space, n_epochs):
    u = np.random.default_rng(0).uniform(size=(200, space.n))
    u[:2] = [[0.0], [1.0]]
    u[2:100] = np.round(u[2:100])  # corners
    rates = space.keep_rates(u, n_epochs)
    assert rates.shape == (200, n_epochs)
    assert np.all((rates > 0.0) & (rates <= 1.0))
    assert np.all(rates[:, 0] == 1.0)
    again = space.keep_rates(u[5:6], n_epochs)[0]
    np.testing.assert_allclose(again, rates[5], atol=1e-12)


def test_eq_1_is_eq_1():
    u, t = np.array([[0.4, 0.7, 0.25]]), np.arange(40)
    tau, tk = 0.95 * 0.4, 1.0 + 0.7 * 39.0
    expected = 1.0 - tau * np.minimum(t / tk, 1.0) ** 0.5
    found = spaces.SPACES["Eq 1 (default)"].keep_rates(u, 40)[0]
    np.testing.assert_allclose(found, expected)
    linear = spaces.SPACES["Eq 1, c = 1"].keep_rates(u[:, :2], 40)[0]
    np.testing.assert_allclose(linear, 1.0 - tau * np.minimum(t / tk, 1.0))


@pytest.mark.parametrize("i", [1, 2, 3, 4])
def test_bases_alone_and_left_out_are_parts_of_table_1(i):
    a = np.random.default_rng(i).uniform(size=(4, 4))
    alone = spaces.SPACES[f"f{i} alone"].keep_rates(a[i - 1][None], 30)[0]
    expected = table1_schedule(30, np.eye(4)[i - 1], a).keep_rates
    np.testing.assert_allclose(alone, expected, atol=1e-12)

    weights, others = np.array([0.5, 0.3, 0.2]), np.delete(np.arange(4), i - 1)
    u = np.concatenate([unit_from_weights(weights), a[others].ravel()])
    left_out = spaces.SPACES[f"without f{i}"].keep_rates(u[None], 30)[0]
    expected = table1_schedule(30, np.insert(weights, i - 1, 0.0), a).keep_rates
    np.testing.assert_allclose(left_out, expected, atol=1e-12)


def test_durations_hold_fall_twice_and_hold():
    u = np.concatenate([unit_from_weights(np.array([0.25, 0.25, 0.125, 0.375])), [0.8 / 0.95]])
    rates = spaces.SPACES["dur4"].keep_rates(u[None], 80)[0]
    knots = np.interp(np.arange(80), [0, 20, 40, 50, 80], [1.0, 1.0, 0.6, 0.2, 0.2])
    np.testing.assert_allclose(rates, knots, atol=1e-12)


def test_kumaraswamy_with_unit_shapes_is_a_straight_line():
    rates = spaces.SPACES["Kumaraswamy"].keep_rates(np.array([[1.0, 0.25, 0.25]]), 10)[0]
    np.testing.assert_allclose(rates, 1.0 - 0.95 * np.arange(10) / 10)


def test_radial_basis_functions_average_their_heights():
    u = np.random.default_rng(1).uniform(size=(50, 12))
    rates = spaces.SPACES["RBF"].keep_rates(u, 30)[:, 1:]
    assert np.all(rates <= u[:, :4].max(axis=1, keepdims=True) + 1e-12)
    assert np.all(rates >= u[:, :4].min(axis=1, keepdims=True) - 1e-12)
    narrow = np.array([[0.9, 0.1, 0.5, 0.5, 0.1, 0.9, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]])
    found = spaces.SPACES["RBF"].keep_rates(narrow, 30)[0]
    np.testing.assert_allclose(found[[3, 15, 27]], [0.9, 0.5, 0.1], atol=1e-6)


def test_mlp_without_second_layer_is_constant():
    u = np.random.default_rng(2).uniform(size=(1, 13))
    u[:, 9:] = 0.5
    rates = spaces.SPACES["MLP"].keep_rates(u, 30)[0, 1:]
    np.testing.assert_allclose(rates, 1.0 / (1.0 + np.exp(-4.0 * (2.0 * u[0, 0] - 1.0))))


def test_fit_finds_a_schedule_of_its_own_space():
    target = coteaching_schedule(30, 0.6, 11.5, 1.7).keep_rates
    found = spaces.fit(spaces.SPACES["Eq 1 (default)"], target)
    assert found.rms <= found.largest < 1e-4
    np.testing.assert_allclose(found.u[0] * 0.95, 0.6, atol=1e-3)


def test_table_1_can_follow_itself_but_no_late_fall():
    space = spaces.SPACES["Table 1"]
    own = space.keep_rates(np.random.default_rng(3).uniform(size=(1, 19)), 30)[0]
    assert spaces.fit(space, own, n_starts=2).rms < 0.01
    late = coteaching_schedule(60, 0.8, 60, 4.0).keep_rates
    assert spaces.fit(space, late, n_starts=2).largest > 0.1


def test_pick_is_that_of_recommend():
    space, lucky = ScheduleSpace(40), []
    for seed in range(4):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        rng = np.random.default_rng(seed)
        for _ in range(30):
            trial = study.ask()
            mean = space.suggest(trial).keep_rates.mean()
            study.tell(trial, (mean - 0.6) ** 2 + 0.05 * rng.normal())
        rates = np.array([space.from_params(t.params).keep_rates for t in study.trials])
        losses_told = np.array([t.value for t in study.trials])
        pick = spaces.smoothed_pick(rates, losses_told)
        assert pick == recommend(study, "smoothed").trial
        lucky.append(pick != study.best_trial.number)
    assert any(lucky)


# Searches


@pytest.mark.parametrize("image", [None, (1, 8, 8)], ids=["MLP", "CNN"])
def test_search_retrains_its_picks_with_fresh_seeds(monkeypatch, image):
    for name, value in (("N_TRIALS", 6), ("N_FEW", 3), ("N_FRESH", 2)):
        monkeypatch.setattr(search_spaces, name, value)
    task = tasks.Task("report", tasks.digits, "symmetric", 0.5, 300, 300, 1e-2, 3)
    case = search_spaces.Case(task, image)
    used = []
    train = search_spaces.Case.train

    def spy(self, rates, seeds, data, on):
        used.append((on, list(seeds)))
        return train(self, rates, seeds, data, on)

    monkeypatch.setattr(search_spaces.Case, "train", spy)
    found = search_spaces.search(case, "RBF", 0)
    assert found == search_spaces.search(case, "RBF", 0)
    assert len(found["validation"]) == 6
    assert all(0.0 <= error <= 1.0 for error in found["test"])
    (searched, trial_seeds), (tested, fresh_seeds) = used[:2]
    assert (searched, tested) == ("validation", "test")
    assert not set(trial_seeds) & set(fresh_seeds)
    search_spaces.search(case, "MLP", 0)
    assert used[-1] == used[1]  # other spaces: the same fresh seeds
    assert search_spaces.search(case, "standard", 0)["test"][0] > 0.0


def test_cnn_sees_the_vectors_of_the_mlp_as_images():
    task = tasks.Task("report", tasks.digits, "symmetric", 0.5, 300, 300, 1e-2, 3)
    flat, images = (search_spaces.Case(task, image).data(0) for image in (None, (1, 8, 8)))
    assert images.input_shape == (1, 8, 8)
    assert torch.equal(images.x.flatten(1), flat.x)
    assert torch.equal(images.noisy_labels, flat.noisy_labels)


def test_interval_over_tasks_covers_the_mean_19_times_of_20():
    rng, covered = np.random.default_rng(0), []
    for _ in range(2000):
        differences = [rng.normal(rng.normal(1.0, 0.5), 0.1, n) for n in (1, 2, 2, 4)]
        mean, low, high = runs.over_tasks(differences)
        assert low < mean < high
        covered.append(low < 100.0 < high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    assert runs.over_tasks([np.ones(3)]) == (100.0, -np.inf, np.inf)


# Losses


def test_measures_of_known_logits():
    labels = torch.tensor([0, 1, 1, 0])
    certain = torch.tensor([[0.0, 50.0], [0.0, 50.0], [0.0, 50.0], [50.0, 0.0]])  # one is wrong
    assert losses.error(certain, labels) == 0.25
    assert losses.missing_probability(certain, labels) == pytest.approx(0.25)
    assert losses.brier(certain, labels) == pytest.approx(0.5)
    assert losses.cross_entropy(certain, labels) == pytest.approx(12.5)
    entropy = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    assert losses.scaled_cross_entropy(certain, labels) == pytest.approx(entropy, abs=1e-3)


def test_curves_are_averaged_over_their_last_epochs():
    curve = np.arange(40.0)[None]
    assert losses.tail(curve, 0.1) == 37.5 == last_epochs_mean(curve[0, :, None])
    assert 34.0 < losses.exponential_mean(curve)[0] < 36.5
    assert losses.exponential_mean(np.ones((1, 40))) == pytest.approx(1.0)


def test_caught_networks_give_the_errors_of_the_training(monkeypatch):
    monkeypatch.setattr(losses, "N_DRAWS", 3)
    task = replace(tasks.TASKS["digits pair-45"], n_train=300, n_validation=300, n_epochs=4)
    found = losses.train(task, 0)
    data = {"clean": task.data(500), "noisy": task.data(500, "noisy")}
    for part in losses.VALIDATIONS:
        results = train_batch(
            losses.draws(task, 0), range(3), data=data[part], network=tasks.mlp64,
            config=task.config, device="cpu",
        )  # fmt: skip
        expected = [last_epochs_mean(r.curves.error) for r in results]
        np.testing.assert_allclose(found[part][losses.DEFAULT], expected, atol=0.005)
        cross, scaled = (found[part][f"{n}ross-entropy, last 10 %"] for n in ("c", "scaled c"))
        assert np.all(np.array(scaled) <= np.minimum(cross, np.log(10)) + 1e-3)


def test_judge_prefers_the_truth(monkeypatch, tmp_path):
    task = tasks.TASKS["digits pair-45"]
    truth = np.abs(losses.draws(task, 0).mean(axis=1) - 0.7)
    made = {loss: truth.tolist() for loss in losses.LOSSES}
    made["cross-entropy, last epoch"] = (-truth).tolist()
    row = {"clean": made, "noisy": made, "test": made}
    monkeypatch.setattr(losses, "N_REPEATS", 3)
    monkeypatch.setattr(losses, "RESULTS", tmp_path / "losses.json")
    monkeypatch.setattr(losses.runs, "read", lambda path: {"results": {"digits pair-45|0": row}})
    found = losses.judge("digits pair-45", 1)["clean"]
    ((rho, regret),) = found[losses.DEFAULT]
    assert rho > 0.95
    assert regret < 0.02
    ((rho, regret),) = found["cross-entropy, last epoch"]
    assert rho < -0.95
    assert regret > 0.1


# Reports


def test_reports_and_picture_are_made_from_the_committed_results(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", "--report"])
    monkeypatch.setattr(search_spaces, "PICTURE", tmp_path / "spaces.png")
    monkeypatch.setattr(search_spaces, "fit", partial(spaces.fit, n_starts=1, n_drawn=200))
    search_spaces.main()
    losses.main()
    said = capsys.readouterr().out
    assert "Minus Eq 1, all tasks" in said
    assert "both noise: points, mean of" in said
    assert 10_000 < (tmp_path / "spaces.png").stat().st_size < 200_000
