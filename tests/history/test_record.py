"""Records: what one trial says of its draw, both ways."""

import base64
import json
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_s2e._attributes import DRAW_KEY, FAILED_TRIAL_KEY, FAILURE_KEY, RETRY_HISTORY_KEY
from optuna_s2e.estimators import resolve
from optuna_s2e.history import (
    Record,
    Rules,
    Slot,
    failed_by_objective,
    join_settings,
    own_record,
    read_leading_tags,
    read_tags,
    split_settings,
)
from optuna_s2e.history._record import VERSION, is_of_later_release

SETTINGS = join_settings(resolve({}), False)
RECORDS = {
    "uniform": Record(3, 0, seed=7, settings=SETTINGS),
    "uniform slot": Record(3, 0, seed=7, settings=SETTINGS, slot=5, attempt=2),
    "joins": Record(9, 2, opener=8, x=(0.25, 1.0)),
    "opens": Record(
        8, 2, settings=SETTINGS, opener=8, x=(0.25, 1.0), parent=4, members=(5, 7, 6),
        theta=(1.0, 2.5, 1.0), space="0123456789abcdef",
    ),
    "opens slot": Record(
        8, 1, settings=SETTINGS, opener=8, x=(0.5,), members=(5, 7), theta=(1.0, 2.5),
        space="0123456789abcdef", slot=6, model=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_records_survive_the_way_through_their_attribute(record: Record) -> None:
    assert Record.from_attr(record.to_attr()) == record
    assert None not in record.to_attr().values() or record.generation == 1


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
@pytest.mark.parametrize(
    "wrong",
    [
        {"v": 3}, {"trial": -1}, {"trial": True}, {"generation": "0"}, {"slot": -1},
        {"slot": "x"}, {"attempt": 1000}, {"attempt": -1}, {"attempt": None},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_attributes_are_no_records(record: Record, wrong: dict[str, Any]) -> None:
    assert Record.from_attr(record.to_attr() | wrong) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"opener": 7}, {"parent": None}, {"members": []}, {"members": [5, 5]}, {"theta": []},
        {"theta": [0.5, 1.0, 1.0]}, {"theta": [1.0, 101.0, 1.0]}, {"space": 3},
        {"settings": {"population_size": 6}}, {"x": ["a"]}, {"x": [10**400]},
        {"x": None}, {"x": []}, {"x": {1: 0.5}}, {"opener": None}, {"parent": -1}, {"parent": "4"},
        {"members": [-1]}, {"members": None}, {"members": {"5": 1}}, {"theta": None},
        {"settings": None}, {"settings": {}}, {"settings": SETTINGS | {"unknown": 1}},
        {"settings": SETTINGS | {"population_size": 0}}, {"model": 0}, {"model": "2"},
        {"model": None}, {"model": True}, {"model": 2.0},
    ],
    ids=lambda wrong: str(wrong)[:40],
)  # fmt: skip
def test_damaged_openers_are_no_records(wrong: dict[str, Any]) -> None:
    assert Record.from_attr(RECORDS["opens"].to_attr() | wrong) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": None}, {"seed": -1}, {"seed": 0.5}, {"settings": None}, {"settings": {}},
        {"settings": {n: v for n, v in SETTINGS.items() if n != "step_size"}},
    ],
    ids=lambda wrong: str(wrong)[:40],
)  # fmt: skip
def test_damaged_uniform_draws_are_no_records(wrong: dict[str, Any]) -> None:
    assert Record.from_attr(RECORDS["uniform"].to_attr() | wrong) is None


def test_the_limits_themselves_are_allowed() -> None:
    last = replace(RECORDS["uniform slot"], attempt=999)
    assert Record.from_attr(last.to_attr()) == last
    widest = replace(RECORDS["joins"], x=(1e308, -1e308, *[0.5] * 99_998))
    assert Record.from_attr(widest.to_attr()) == widest
    longer = replace(RECORDS["joins"], x=(0.5,) * 100_001)
    assert Record.from_attr(longer.to_attr()) is None
    at_bounds = replace(RECORDS["opens"], theta=(1.0, 100.0, 1.0))
    assert Record.from_attr(at_bounds.to_attr()) == at_bounds
    first = replace(RECORDS["opens slot"], generation=1, parent=0, members=(0,))
    assert Record.from_attr(first.to_attr()) == first


def large(n_members: int, n_theta: int) -> Record:
    rng = np.random.default_rng(0)
    members = 10_000 + np.arange(n_members) + rng.integers(-4, 5, n_members) * 1000
    return replace(
        RECORDS["opens"], trial=99_999, opener=99_999, members=tuple(members.tolist()),
        theta=tuple((1 + 99 * rng.random(n_theta)).tolist()),
    )  # fmt: skip


@pytest.mark.parametrize(("n_members", "n_theta"), [(41, 3), (2, 41), (100_000, 100_000)])
def test_long_lists_are_packed_exactly_and_need_this_release(n_members: int, n_theta: int) -> None:
    record = replace(large(n_members, n_theta), members=tuple(range(n_members)))
    attr = json.loads(json.dumps(record.to_attr()))
    assert Record.from_attr(attr) == record
    assert attr["v"] == VERSION == 2
    assert isinstance(attr["members"], str) == (n_members > 40)
    assert isinstance(attr["theta"], str) == (n_theta > 40)
    assert Record.from_attr(attr | {"v": 1}) is None


def test_short_lists_are_written_as_the_first_release_reads_them() -> None:
    attr = replace(large(40, 40), members=tuple(range(40))).to_attr()
    assert attr["v"] == 1
    assert (len(attr["members"]), len(attr["theta"])) == (40, 40)


def test_an_opener_of_200_members_in_any_order_and_36_thetas_is_small() -> None:
    order = np.random.default_rng(0).permutation(np.arange(90_000, 90_200)).tolist()
    record = replace(large(200, 36), members=tuple(order), x=tuple(np.linspace(0.1, 0.9, 19)))
    assert Record.from_attr(record.to_attr()) == record
    assert len(json.dumps(record.to_attr())) < 2000


def test_theta_of_3000_categories_fits_the_smallest_storage() -> None:
    """MySQL keeps 65,535 bytes of an attribute."""
    assert len(json.dumps(large(6, 3000).to_attr())) < 35_000
    rare = [1.0] * 2900 + (1 + np.random.default_rng(0).random(100)).tolist()
    mostly_equal = replace(large(6, 3000), theta=tuple(rare))
    assert len(json.dumps(mostly_equal.to_attr())) < 2500


@pytest.mark.parametrize("field", ["members", "theta"])
@pytest.mark.parametrize(
    "packed",
    [
        "", "x", "!!!!", "AAAA",
        base64.b64encode(zlib.compress(b"123")).decode(),  # no eight bytes
        base64.b64encode(zlib.compress(b"\xff" * 80)).decode(),  # NaN, and members -1, -2, ...
        base64.b64encode(zlib.compress(np.ones(50).tobytes())[:-5]).decode(),  # cut off
        base64.b64encode(zlib.compress(np.full(50, 2**63 - 1).tobytes())).decode(),  # overflows
    ],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_damaged_packed_lists_are_no_records(field: str, packed: str) -> None:
    assert Record.from_attr(large(41, 41).to_attr() | {field: packed}) is None


@pytest.mark.parametrize(("n_members", "n_theta"), [(100_001, 3), (2, 100_001)])
def test_one_packed_number_too_many_is_no_record(n_members: int, n_theta: int) -> None:
    record = replace(large(n_members, n_theta), members=tuple(range(n_members)))
    assert Record.from_attr(record.to_attr()) is None


@pytest.mark.parametrize("field", ["members", "theta"])
def test_text_of_far_too_many_numbers_is_not_unpacked(field: str) -> None:
    text = base64.b64encode(zlib.compress(bytes(10**7))).decode()
    attr = large(41, 41).to_attr() | {field: text}
    tracemalloc.start()
    try:
        assert Record.from_attr(attr) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2e6  # 100,000 numbers have 8e5 bytes


@pytest.mark.parametrize("attr", [None, 3, "x", [], {}])
def test_other_attributes_are_no_records(attr: Any) -> None:
    assert Record.from_attr(attr) is None


def test_settings_survive_the_way_through_a_record() -> None:
    settings = resolve({"population_size": 9, "theta_bounds": (0.5, 50.0)})
    assert split_settings(join_settings(settings, True)) == (settings, True)
    with pytest.raises(ValueError, match="consider_pruned_trials must be a bool"):
        split_settings(settings.to_dict())
    with pytest.raises(TypeError):
        split_settings(join_settings(settings, True) | {"unknown": 1})


def test_a_slot_is_keyed_by_its_number_at_first_and_apart_from_all_others_later() -> None:
    assert Slot(17, 0).key == 17
    slots = [Slot(number, attempt) for number in (0, 1, 10**9) for attempt in (0, 1, 999)]
    assert len({slot.key for slot in slots}) == len(slots)
    assert RECORDS["uniform slot"].key == Slot(5, 2).key
    assert RECORDS["uniform"].key == 3


def trial_with(number: int, **attrs: Any) -> FrozenTrial:
    trial = create_trial(value=0.0, system_attrs=attrs)
    trial.number = number
    return trial


def test_a_copied_record_is_not_its_trials_own_but_a_retry_has_that_of_its_first_try() -> None:
    attr = RECORDS["uniform"].to_attr()  # of trial 3
    for attrs, number, own in [
        ({}, 3, True),
        ({}, 4, False),
        ({FAILED_TRIAL_KEY: 3}, 4, True),
        ({FAILED_TRIAL_KEY: 2}, 4, False),
        ({FAILED_TRIAL_KEY: 4, RETRY_HISTORY_KEY: [3, 4]}, 5, True),
        ({FAILED_TRIAL_KEY: 4, RETRY_HISTORY_KEY: [4]}, 5, False),
        ({RETRY_HISTORY_KEY: 3}, 5, False),
    ]:
        trial = trial_with(number, **{DRAW_KEY: attr, **attrs})
        assert (own_record(trial.system_attrs, trial) is not None) == own


def test_only_failures_of_the_objective_are_its_own() -> None:
    for by, state, own in [
        ("objective", TrialState.FAIL, True),
        ("machine", TrialState.FAIL, False),
        ("objective", TrialState.RUNNING, False),
        (None, TrialState.FAIL, False),
    ]:
        trial = create_trial(state=state, system_attrs={FAILURE_KEY: {"by": by, "reason": "r"}})
        assert failed_by_objective(trial) == own
    for mark in ("objective", None, {}):
        trial = create_trial(state=TrialState.FAIL, system_attrs={FAILURE_KEY: mark})
        assert not failed_by_objective(trial)


@pytest.mark.parametrize(
    ("attr", "later"),
    [({"v": 3}, True), ({"v": 2}, False), ({"v": 1}, False), ({"v": "3"}, False), ({}, False),
     ("v", False), (None, False)],
    ids=str,
)  # fmt: skip
def test_a_record_of_a_later_release_is_known_by_its_version(attr: Any, later: bool) -> None:
    assert is_of_later_release(trial_with(0, **{DRAW_KEY: attr})) == later


def test_tags_are_complete_and_lead_until_a_parameter_is_searched() -> None:
    one, nine, range_ = IntDistribution(1, 1), IntDistribution(9, 9), IntDistribution(1, 9)
    kind, epochs, both = {"R.eq1": 1}, {"R.n_epochs": 9}, {"R.eq1": 1, "R.n_epochs": 9}
    for named, tags, leading in [
        ({"R.eq1": one, "R.n_epochs": nine}, both, both),
        ({"R.eq1": one, "R.n_epochs": nine, "x": range_}, both, both),
        ({"R.eq1": one, "x": range_, "R.n_epochs": nine}, both, {}),
        ({"x": range_, "R.eq1": one, "R.n_epochs": nine}, both, {}),
        ({"R.eq1": one}, {}, {}),
        ({"R.n_epochs": nine}, {}, {}),
        ({"R.eq1": one, "R.n_epochs": range_}, {}, {}),
        ({"R.version": one, "R.n_epochs": nine}, {}, {}),
    ]:
        params = {**kind, **epochs, "x": 4, "R.version": 1}
        trial = create_trial(
            value=0.0, params={n: params[n] for n in named}, distributions={**named}
        )
        assert (read_tags(trial), read_leading_tags(trial)) == (tags, leading), named


def test_losses_are_minimised_and_a_pruned_trial_without_report_is_the_worst() -> None:
    best, none = create_trial(value=2.0), create_trial(state=TrialState.PRUNED)
    assert Rules().loss(best) == 2.0
    assert Rules(maximize=True).loss(best) == -2.0
    assert Rules(maximize=True).loss(none) == Rules().loss(none) == float("inf")
    nan = create_trial(state=TrialState.PRUNED)
    nan.values = [float("nan")]
    assert Rules(maximize=True).loss(nan) == Rules().loss(nan) == float("inf")
    assert (Rules().counts(best), Rules().counts(none)) == (True, False)
    assert [Rules(consider_pruned=c).counts(none) for c in (False, True)] == [False, True]


@pytest.mark.parametrize(
    ("directions", "maximize"), [(["minimize"], False), (["maximize"], True)], ids=str
)
def test_rules_take_the_direction_of_the_study(directions: list[str], maximize: bool) -> None:
    study = optuna.create_study(directions=directions)
    assert Rules.of(study, True) == Rules(maximize, True)
    assert Rules.of(study) == Rules(maximize, False)
    with pytest.raises(ValueError, match="one objective"):
        Rules.of(optuna.create_study(directions=directions * 2))


def test_a_record_without_a_version_of_the_model_is_of_the_first() -> None:
    attr = RECORDS["opens slot"].to_attr()
    assert attr.pop("model") == 2
    record = Record.from_attr(attr)
    assert record is not None
    assert record.model == 1
    assert record.to_attr() == attr
