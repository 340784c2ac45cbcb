"""Records of draws under a search: small and finite; damaged ones are ignored and reported."""

import json
import math
from typing import Any

import numpy as np
import optuna
import pytest
from searches import K, assert_replays, make_study, quadratic, record, schedule_objective

from optuna_s2e import S2ESampler, generations, optimize_batch, replay
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.analysis import Snapshot, verify


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers_in(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers_in(v)]
    return [value] if isinstance(value, int | float) else []


def test_record_is_one_small_finite_attribute() -> None:
    study = make_study(population_size=6)
    study.optimize(schedule_objective(200, "table1"), n_trials=20)
    for trial in study.trials:
        (own,) = (v for k, v in trial.system_attrs.items() if k.startswith("s2e:"))
        assert len(json.dumps(own)) < 2000
        assert all(map(math.isfinite, numbers_in(own)))
        assert own["v"] == 1
        assert own["trial"] == trial.number
    assert not study.user_attrs
    assert not any(k.startswith("s2e") for k in study._storage.get_study_system_attrs(0))


def deeply_nested() -> Any:
    value: Any = 1
    for _ in range(50):
        value = [value]
    return value


DAMAGE: dict[str, Any] = {
    "no dictionary": lambda r: "import os",
    "none": lambda r: None,
    "later version": lambda r: r | {"v": 3},
    "other trial": lambda r: r | {"trial": 1},
    "negative trial": lambda r: r | {"trial": -1},
    "true": lambda r: r | {"generation": True},
    "generation far ahead": lambda r: r | {"generation": 10**30},
    "x too short": lambda r: r | {"x": r["x"][:-1]},
    "x outside": lambda r: r | {"x": [5.0] * len(r["x"])},
    "x huge": lambda r: r | {"x": [0.5] * 200_000},
    "x NaN": lambda r: r | {"x": [math.nan] * len(r["x"])},
    "x nested": lambda r: r | {"x": deeply_nested()},
    "other x": lambda r: r | {"x": [0.123] * len(r["x"])},
    "opener unknown": lambda r: r | {"opener": 99999},
    "theta negative": lambda r: r | {"theta": [-1.0] * 6},
    "theta infinite": lambda r: r | {"theta": [math.inf] * 6},
    "theta too long": lambda r: r | {"theta": [1.0] * 7},
    "theta huge": lambda r: r | {"theta": [1e300] * 6},
    "theta empty": lambda r: r | {"theta": []},
    "members unknown": lambda r: r | {"members": [10**6]},
    "members doubled": lambda r: r | {"members": [0, 0, 1, 2]},
    "members a string": lambda r: r | {"members": "0123"},
    "parent itself": lambda r: r | {"parent": r["trial"]},
    "parent missing": lambda r: r | {"parent": None},
    "space another": lambda r: r | {"space": "0" * 16},
    "settings none": lambda r: r | {"settings": None},
    "settings empty": lambda r: r | {"settings": {}},
    "settings NaN": lambda r: r | {"settings": r["settings"] | {"step_size": math.nan}},
    "settings half": lambda r: r | {"settings": {"theta_bounds": [1.0, 100.0]}},
    "theta without end": lambda r: r | {"theta": [10**400] * 6},
    "x without end": lambda r: r | {"x": [10**400] * len(r["x"])},
    "members itself": lambda r: r | {"members": [r["trial"]]},
}


@pytest.mark.filterwarnings("ignore:.*later release")
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_record_is_ignored(case: str, m: int) -> None:
    """Damage the opener of generation m and go on."""
    study = make_study()
    study.optimize(quadratic, n_trials=m * K)
    trial = study.ask()
    value = quadratic(trial)
    study._storage.set_trial_system_attr(
        trial._trial_id, DRAW_KEY, DAMAGE[case](record(study.trials[-1]))
    )
    study.tell(trial, value)
    study.sampler = S2ESampler(
        population_size=K, estimator="natural", seed=0
    )  # knows nothing of before
    study.optimize(quadratic, n_trials=3 * K)
    gs = generations(study)
    assert [g.members for g in gs][1 : m + 1] == [(0, 1, 2, 3), (4, 5, 6, 7)][:m]
    assert len(gs) >= 3 + m
    for g in gs:
        assert np.all((g.theta >= 1) & (g.theta <= 100))
    assert_replays(study)


@pytest.mark.parametrize("number", [1, 2 * K + 1])
def test_member_that_is_damaged_later_stops_no_search_but_fails_the_verification(
    number: int,
) -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=5 * K + 1)
    trials = study.trials
    trials[number].system_attrs[DRAW_KEY] = "x"
    copied = make_study()
    copied.add_trials(trials)
    assert not verify(Snapshot.of(copied)).sound
    assert [g.opener for g in generations(copied)] == [g.opener for g in generations(study)]
    copied.optimize(quadratic, n_trials=K)
    assert len(generations(copied)) == 7
    with pytest.raises(ValueError, match=rf"members \[{number}\] are no draws"):
        replay(copied)
    trials = study.trials
    trials[2 * K].system_attrs[DRAW_KEY] = "x"  # an opener: its draws cannot be followed
    copied = make_study()
    copied.add_trials(trials)
    assert not verify(Snapshot.of(copied)).sound


def test_values_that_storages_round_are_draws() -> None:
    """Integers beyond 2^53 come back as floats' neighbours; NaN is not equal to itself."""

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_int("i", 1, 2**60)
        return float(trial.suggest_categorical("c", ["a", math.nan]) == "a")

    study = make_study()
    study.optimize(objective, n_trials=4 * K)
    assert len(generations(study)) == 4
    assert generations(study)[0].theta.shape == (4,)
    assert_replays(study)


@pytest.mark.parametrize("run", [lambda s, f, n: s.optimize(f, n), optimize_batch])
@pytest.mark.parametrize(
    ("low", "high", "step"),
    [(0, 2**60 - 1, 3), (1, 2**60 - 5, 10), (-(2**62), 2**62 - 1, 7), (0, 2**62, 1)],
)
def test_steps_of_ints_beyond_floats_are_searched(
    run: Any, low: int, high: int, step: int
) -> None:
    seen = []

    def objective(trial: optuna.Trial) -> float:
        seen.append(trial.suggest_int("i", low, high, step=step))
        return abs(seen[-1] / 2**60 - 0.3)

    study = make_study()
    run(study, objective, 6 * K)
    assert all(low <= v <= high and (v - low) % step == 0 for v in seen)
    assert [n for g in generations(study) for n in g.members] == list(range(5 * K))
    space = Snapshot.of(study).space
    assert space is not None
    for trial in study.trials[K:]:  # what theta draws is what the objective gets
        assert seen[trial.number] == space.decode(np.array(record(trial)["x"]))["i"]
    assert_replays(study)


def test_names_of_equal_checksum_are_drawn_apart() -> None:
    study = make_study()  # crc32 of the two names is the same
    study.optimize(lambda t: t.suggest_float("plumless", 0, 1) - t.suggest_float("buckeroo", 0, 1),
                   n_trials=2)  # fmt: skip
    assert all(t.value != 0 for t in study.trials)


def test_tampering_shows_in_the_replay() -> None:
    study = make_study()
    study.optimize(quadratic, n_trials=2 * K + 1)
    opener = study.trials[2 * K]
    changed = record(opener) | {"theta": [t + 0.5 for t in record(opener)["theta"]]}
    clean = optuna.create_study()
    trials = study.trials
    trials[2 * K].system_attrs[DRAW_KEY] = changed
    clean.add_trials(trials)
    told, computed = generations(clean), replay(clean)
    assert np.array_equal(told[1].theta, computed[1].theta)
    assert not np.array_equal(told[2].theta, computed[2].theta)
