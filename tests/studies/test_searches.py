"""The studies of searches: what their tables and pictures are made of."""

import sys

import asynchronous
import estimators
import first_trials
import functions
import landscapes
import numpy as np
import optuna
import overtuning
import picks
import pytest
import runs
import search_algorithms
import tasks
import twelve_trainings

FEW = search_algorithms.FEW_TRAININGS
NAMES = ["breast cancer sym-35", "synthetic-5 sym-50"]


def cell(pick: float, values: list[float], expected: float = 0.1) -> dict[str, object]:
    return {
        "test_error": {"smoothed": pick},
        "expected": {"smoothed": [expected, 0.0, 1.0]},
        "values": values,
    }


def test_differences_are_paired_by_seed_and_ours_minus_theirs():
    results = {}
    for task in NAMES:
        for seed in range(3):
            results[f"{task}|S2E|{seed}"] = cell(0.1 * seed, [])
            results[f"{task}|TPE|{seed}"] = cell(0.1 * seed + 0.05, [])
    del results[f"{NAMES[1]}|TPE|1"]  # a cell counts up to its first gap, and one pair is none
    (first,) = search_algorithms.differences(results, NAMES, "TPE", 3)
    np.testing.assert_allclose(first, -0.05)
    for seed in range(2):  # another pick of ours, beside the same of theirs
        results[f"{NAMES[0]}|{FEW}|{seed}"] = {"test_error": {"mean": 0.2, "smoothed": 9.0}}
    (few,) = search_algorithms.differences(results, NAMES, "TPE", 3, FEW, "mean")
    np.testing.assert_allclose(few, [0.15, 0.05])


def test_best_known_is_the_lowest_expected_of_any_algorithm_per_seed():
    results = {
        "a|S2E|0": cell(0, [], 0.3), "a|TPE|0": cell(0, [], 0.2), "a|S2E|1": cell(0, [], 0.4)
    }  # fmt: skip
    assert search_algorithms.best_known(results, "a", 2).tolist() == [0.2, 0.4]


def test_the_best_retrained_pick_is_valued_by_trainings_that_did_not_choose_it() -> None:
    lucky_first = {"validation": [0.1] * 4 + [0.5] * 4}
    lucky_last = {"validation": [0.5] * 4 + [0.1] * 4}
    good = {"validation": [0.2] * 8}
    assert search_algorithms.retrained_best([lucky_first, lucky_last]) == pytest.approx(0.5)
    assert search_algorithms.retrained_best([good]) == pytest.approx(0.2)
    rng = np.random.default_rng(0)
    same = [
        search_algorithms.retrained_best([{"validation": rng.normal(size=8)} for _ in range(5)])
        for _ in range(400)
    ]
    assert abs(np.mean(same)) < 4 * np.std(same) / 20  # the least of five is at -1.16 / sqrt(8)
    assert np.std(same) < 0.5


def test_a_pick_is_worse_beyond_noise_where_the_fresh_trainings_say_so() -> None:
    fresh = [0.10, 0.14] * 4  # standard error of the difference of two means: 1.07 points
    task = NAMES[0]
    results = {}
    for seed, pick in enumerate((0.10, 0.21, 0.25)):
        results[f"{task}|S2E|{seed}"] = {"test_error": {"smoothed": pick}, "validation": fresh}
        results[f"{task}|random|{seed}"] = {"test_error": {"coteaching": 0.2}}
    results[f"{task}|S2E|7"] = {"test_error": {"smoothed": 0.9}, "validation": fresh}  # no pair
    (found,) = overtuning.summarise(list(overtuning.of_trainings(results))).items()
    assert found[0] == f"trainings|whole|S2E|60|smoothed|{overtuning.TOLD}"
    assert found[1]["searches"] == 3
    assert (found[1]["worse"], found[1]["beyond"]) == (66.7, 33.3)
    assert found[1]["error"] == pytest.approx(
        100 * np.sqrt(2 * np.var(fresh, ddof=1) / 8), abs=0.01
    )
    assert found[1]["mean"] == pytest.approx((-10 + 1 + 5) / 3, abs=0.01)


def test_pooled_differences_weigh_tasks_equally():
    mean, low, high = runs.pooled([np.array([1.0, 3.0]), np.array([5.0, 5.0, 5.0])], scale=1.0)
    assert mean == 3.5
    assert high - mean == pytest.approx(mean - low)
    assert high - mean >= 1.95 * np.sqrt(1.0) / 2


@pytest.mark.parametrize("name", [n for n, t in tasks.TASKS.items() if not t.needs_images])
def test_tasks_split_once_and_flip_only_what_is_noisy(name):
    task = tasks.TASKS[name]
    clean, noisy = task.data(3), task.data(3, "noisy")
    assert len(clean.x) == task.n_train
    assert len(clean.x_val) == len(noisy.y_val) == task.n_validation
    assert clean.x_test is not None
    assert len(clean.x_test) >= task.n_validation
    np.testing.assert_array_equal(clean.noisy_labels, noisy.noisy_labels)
    share = float((clean.y_val != noisy.y_val).double().mean())
    assert share == pytest.approx(task.noise_rate, abs=0.13)


def test_noise_is_added_to_what_the_sampler_sees_only():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(functions.mostly_noise, n_trials=200)
    trials = study.get_trials(deepcopy=False)
    true = np.array([t.user_attrs["true"] for t in trials])
    seen = np.array([t.value for t in trials])
    np.testing.assert_allclose(true, [sum(t.params.values()) for t in trials])
    assert np.std(seen - true) == pytest.approx(2.3, rel=0.2)


@pytest.fixture(scope="module")
def lookup() -> asynchronous.Lookup:
    rates = asynchronous.drawn(tasks.TASKS[asynchronous.TASKS[0]])
    error = np.abs(rates[:, -1] - 0.5)
    return asynchronous.Lookup(
        asynchronous.TASKS[0], {"validation": list(error + 1.0), "test": list(error)}
    )


def test_lookup_returns_the_outcome_of_a_near_schedule(lookup):
    rates, rng = asynchronous.drawn(tasks.TASKS[asynchronous.TASKS[0]]), np.random.default_rng(0)
    for at in range(5):
        seen = lookup.observe(rates[at], rng)
        assert seen in lookup.validation
        assert seen == pytest.approx(1.0 + abs(rates[at, -1] - 0.5), abs=0.15)
    excess = [lookup.excess(r) for r in rates[:50]]
    assert min(excess) >= 0.0
    assert np.corrcoef(excess, np.abs(rates[:50, -1] - 0.5))[0, 1] > 0.9


@pytest.mark.parametrize("n_workers", [1, 24])
def test_every_trial_of_the_budget_is_begun_and_told(lookup, monkeypatch, n_workers):
    told = []
    monkeypatch.setattr(asynchronous, "lookup", lambda name: lookup)
    monkeypatch.setattr(
        lookup, "observe", lambda rates, rng: told.append(rates) or float(rates[-1])
    )
    found = asynchronous.search(asynchronous.TASKS[0], "natural", n_workers, 0)
    assert len(told) == asynchronous.N_TRIALS
    assert found["generations"] == 1 + (asynchronous.N_TRIALS - n_workers) // 6


def made_searched(noise: float) -> picks.Searched:
    """Return a search of 18 in which the loss is a distance from a schedule, and noise."""
    name = next(n for n in landscapes.names("tune") if landscapes.TASKS[n].n_epochs == 40)
    table, rng = landscapes.lookup(name), np.random.default_rng(0)
    rates = table.keep_rates[rng.choice(256, 18, replace=False)]
    losses = np.sqrt(np.mean((rates - rates[3]) ** 2, axis=1)) + noise * rng.normal(size=18)
    return picks.Searched(rates, losses, np.full(40, 0.5), table)


def test_probability_to_be_the_best_is_that_of_the_models_joint_posterior() -> None:
    searched = made_searched(0.1)
    assert searched.is_best.sum() == pytest.approx(1)
    assert searched.is_best.argmax() in np.argsort(searched.f)[:3]
    assert made_searched(1e-6).is_best[3] > 0.9


def test_every_idea_picks_a_schedule_and_a_share_of_the_middle_is_that_of_the_noise() -> None:
    searched = made_searched(0.0)
    for pick in picks.IDEAS.values():
        rates = pick(searched)
        assert rates.shape == (40,)
        assert ((rates > 0) & (rates <= 1 + 1e-12)).all()
    np.testing.assert_allclose(picks.IDEAS["smoothed"](searched), searched.rates[3])
    noise = made_searched(100.0)
    s = noise.gp.noise_share
    expected = (1 - s**2) * noise.mean(0.3) + s**2 * 0.5
    np.testing.assert_allclose(picks.IDEAS[picks.AHEAD](noise), expected)


def test_points_are_learned_from_tables_of_other_data() -> None:
    others = [n for n in landscapes.names("tune") if not n.startswith("digits")]
    assert 0 < len(others) < len(landscapes.names("tune"))
    regret = {n: first_trials.regret_of_points(n) for n in others}
    points = first_trials.learned("digits")
    assert len(np.unique(points, axis=0)) == first_trials.K - 1

    def lowest(chosen: list[int]) -> float:
        """Return the mean over the tables of the lowest regret, with the suggested schedule."""
        return sum(min(r[-1], *r[chosen]) for r in regret.values()) / len(regret)

    chosen: list[int] = []
    for point in points:  # each one is the best that can be added
        (i,) = np.flatnonzero((point == first_trials.POINTS).all(axis=1))
        assert lowest([*chosen, i]) <= min(lowest([*chosen, j]) for j in range(256)) + 1e-12
        chosen.append(int(i))
    assert lowest(chosen) < lowest(chosen[:1]) < np.mean([r[-1] for r in regret.values()])


def test_budgets_are_compared_by_seed_where_both_have_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    twelve = [np.full((3, 5), 2.0), np.full((3, 5), 4.0)]  # of two tasks, (searches, budgets)
    sixty = [np.full((2, 5), 9.0), np.full((2, 5), 9.0)]
    for own, other in zip(twelve, sixty, strict=True):
        own[:, twelve_trainings.BUDGETS.index(12)] = [1.0, 3.0, 50.0]
        other[:, twelve_trainings.BUDGETS.index(60)] = [0.0, 1.0]
    twelve_trainings.compare("x", twelve, 12, sixty, 60)
    assert capsys.readouterr().out == "  x: +1.50 [+0.81, +2.19]; +1.5 +1.5; 2\n"
    twelve_trainings.compare("x", twelve, 12, None, 60)
    twelve_trainings.compare("x", twelve, 12, twelve, 12)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("study", [search_algorithms, estimators, asynchronous])
def test_report_is_made_from_the_committed_results(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", "--report"])
    monkeypatch.setattr(search_algorithms, "PICTURE", tmp_path / "picture.png")
    study.main()
    assert "S2E" in (out := capsys.readouterr().out) or "surrogate" in out
    if study is search_algorithms:
        assert 10_000 < (tmp_path / "picture.png").stat().st_size < 150_000
