"""Trials of earlier studies: which are taken, how a study keeps them, which lie in a space."""

import json
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from optuna_s2e._attributes import SOURCES_KEY
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history import Sources, read_sources, record_sources
from optuna_s2e.history._sources import MAX_LENGTH, MAX_SOURCE_TRIALS

UNIT = FloatDistribution(0, 1)


def a_study(values: Any, name: str = "earlier", **options: Any) -> optuna.Study:
    study = optuna.create_study(study_name=name, **options)
    for i, value in enumerate(values):
        study.add_trial(
            create_trial(params={"x": i / len(values)}, distributions={"x": UNIT}, value=value)
        )
    return study


def test_losses_are_minimised_and_only_finite_ones_of_complete_trials_are_taken() -> None:
    study = a_study([1.0, 3.0, float("inf"), 2.0], direction="maximize")
    study.add_trial(create_trial(state=TrialState.FAIL))
    taken = Sources.of([study])
    assert taken.names == ("earlier",)
    assert [(p["x"], loss) for p, loss in taken.trials[0]] == [
        (0.25, -3.0), (0.75, -2.0), (0.0, -1.0),
    ]  # fmt: skip


def test_many_trials_are_spread_over_the_order_of_their_losses() -> None:
    many = a_study([float(i) for i in range(5 * MAX_SOURCE_TRIALS)])
    few = a_study([7.0], name="small")
    taken = Sources.of([many, few])
    losses = [loss for _, loss in taken.trials[0]]
    assert len(losses) == MAX_SOURCE_TRIALS // 2
    assert (losses[0], losses[-1]) == (0.0, 5.0 * MAX_SOURCE_TRIALS - 1)
    assert np.ptp(np.diff(losses)) <= 1.0
    assert len(taken.trials[1]) == 1


def test_the_attribute_is_as_short_as_every_database_needs() -> None:
    study = optuna.create_study()
    names = [f"parameter_{i:04}" for i in range(100)]
    for value in range(MAX_SOURCE_TRIALS):
        study.add_trial(
            create_trial(
                params=dict.fromkeys(names, value / 171),
                distributions=dict.fromkeys(names, UNIT),
                value=value,
            )
        )
    taken = Sources.of([study])
    assert 10 <= len(taken.trials[0]) < MAX_SOURCE_TRIALS
    assert len(json.dumps(taken.to_attr())) <= MAX_LENGTH


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [optuna.create_study(study_name="new")], "'new' has none with parameters"),
        (lambda: [optuna.create_study(directions=["minimize"] * 2)], "not multi-objective"),
        (lambda: a_study([1.0]), "must be a list of studies, but got <optuna"),
        (lambda: ["sqlite:///a.db"], "must be a list of studies, but got .'sqlite"),
        (lambda: [a_study([1.0])] * 101, "must be at most 100 studies, but got 101"),
    ],
)
def test_what_cannot_teach_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sources.of(make())


@pytest.mark.filterwarnings("ignore:Choices for a categorical:UserWarning")
def test_values_that_no_storage_keeps_are_refused() -> None:
    study = optuna.create_study()
    study.optimize(lambda t: len(t.suggest_categorical("c", [(1, 2), (3,)])), n_trials=1)
    with pytest.raises(ValueError, match=r"'c' in .* has the value \("):
        Sources.of([study])


def test_what_a_study_holds_counts_and_is_read_back_exactly() -> None:
    study = optuna.create_study()
    first, second = Sources.of([a_study([0.1 + 0.2])]), Sources.of([a_study([9.0], name="other")])
    assert record_sources(study, first) == first
    assert record_sources(study, second) == first
    assert read_sources(study._storage.get_study_system_attrs(study._study_id)) == first
    assert read_sources({}) is None


@pytest.mark.parametrize("attr", [{"v": 2, "studies": []}, {"v": 1}, [], {"v": 1, "studies": [3]}])
def test_damaged_sources_are_named(attr: Any) -> None:
    with pytest.raises(ValueError, match="source trials that the study keeps cannot be read"):
        read_sources({SOURCES_KEY: attr})


def test_only_trials_in_the_ranges_of_a_space_are_its_draws() -> None:
    space = SearchSpace.of(
        {"n": IntDistribution(1, 4), "kind": CategoricalDistribution(["a", "b"])}, {"R.eq1": 1}
    )
    inside = {"n": 2, "kind": "b", "R.eq1": 1, "other": 5}
    trials = (
        (inside, 1.0),
        ({"kind": "a", "R.eq1": 1}, 2.0),  # another branch
        (inside | {"n": 9}, 3.0),
        (inside | {"n": "two"}, 4.0),
        (inside | {"kind": "c"}, 5.0),
        (inside | {"R.eq1": 2}, 6.0),
        ({"R.eq1": 1, "other": 5}, 7.0),
    )
    draws = Sources(("one", "two"), (trials, trials[:1])).draws(space)
    assert draws.losses.tolist() == [1.0, 2.0, 1.0]
    assert draws.studies.tolist() == [1, 1, 2]
    assert draws.active.tolist() == [[True, True], [True, False], [True, True]]
    assert draws.x[0].tolist() == [1.0, 0.375]
    assert Sources().draws(space).x.shape == (0, 2)
