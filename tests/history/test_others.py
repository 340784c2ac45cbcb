"""Trials that are no draws, whose losses the model knows all the same."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from optuna_s2e._attributes import DRAW_KEY, FAILURE_KEY, FIXED_PARAMS_KEY
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history._others import Others
from optuna_s2e.history._record import MAX_ALSO, Draw, Record, Rules
from optuna_s2e.sampler import S2ESampler

UNIT, KIND = FloatDistribution(0, 1), CategoricalDistribution(["a", "b"])
SPACE = SearchSpace.of({"x": UNIT, "kind": KIND})
SETTINGS = S2ESampler().settings


def trial(number: int, params, distributions=None, **options) -> optuna.trial.FrozenTrial:  # type: ignore[no-untyped-def]
    known = {"x": UNIT, "kind": KIND} | (distributions or {})
    options = {"value": 0.5} | options
    made = create_trial(
        params=params, distributions={name: known[name] for name in params}, **options
    )
    made.number = number
    return made


def out_of_range(params) -> optuna.trial.FrozenTrial:  # type: ignore[no-untyped-def]
    """Return a trial as Optuna keeps one that was enqueued with these parameters."""
    made = trial(1, dict.fromkeys(params, 0.5) | {"kind": "a"})
    made.params = params
    return made


def others_of(*trials: optuna.trial.FrozenTrial, rules: Rules | None = None) -> Others:
    others = Others()
    for one in trials:
        others.take(one, rules or Rules())
    return others


def draw(params) -> Draw:  # type: ignore[no-untyped-def]
    return Draw(trial(99, params), Record(99, 0, seed=0, settings=SETTINGS), {}, {})


def unknown(others: Others, *openers: Record, params=None) -> list[int]:  # type: ignore[no-untyped-def]
    drawn = draw(params or {"x": 0.1, "kind": "a"})
    return [t.number for t in others.unknown(SPACE, openers, [drawn])]


def test_completed_trials_of_the_space_are_unknown_until_an_opener_names_them() -> None:
    others = others_of(*(trial(n, {"x": 0.1 * n, "kind": "b"}) for n in (3, 5, 4)))
    assert unknown(others) == [3, 5, 4]  # in the order of completion
    opener = Record(9, 1, members=(7,), also=(5,))
    assert unknown(others, opener) == [3, 4]
    assert [t.number for t in others.readable(SPACE, [4, 5, 77])] == [4, 5]


@pytest.mark.parametrize(
    "strange",
    [
        trial(1, {"x": 0.5, "kind": "a"}, {"x": FloatDistribution(0, 2)}),
        trial(1, {"x": 1, "kind": "a"}, {"x": IntDistribution(0, 1)}),
        trial(1, {"x": 0.5, "kind": "a"}, {"kind": CategoricalDistribution(["a", "c"])}),
        trial(1, {"x": 0.5}),  # as no draw is
        out_of_range({"x": 7.0, "kind": "a"}),
        trial(1, {}),
        trial(1, {"x": 0.5, "kind": "a"}, state=TrialState.FAIL, value=None),
        trial(1, {"x": 0.5, "kind": "a"}, state=TrialState.PRUNED, value=None),
    ],
)
def test_other_ranges_branches_and_states_teach_nothing(
    strange: optuna.trial.FrozenTrial,
) -> None:
    assert unknown(others_of(strange)) == []


def test_trials_without_parameters_that_no_draw_of_theirs_has_count() -> None:
    assert unknown(others_of(trial(2, {"x": 0.5})), params={"x": 0.5}) == [2]


def test_pruned_trials_count_on_request_and_the_newest_are_returned() -> None:
    pruned = trial(1, {"x": 0.5, "kind": "a"}, state=TrialState.PRUNED)
    assert unknown(others_of(pruned, rules=Rules(consider_pruned=True))) == [1]
    many = others_of(*(trial(n, {"x": 0.5, "kind": "a"}) for n in range(MAX_ALSO + 7)))
    assert unknown(many) == list(range(7, MAX_ALSO + 7))


def test_a_fixed_trial_settles_its_slot_unless_its_objective_failed() -> None:
    record = Record(0, 0, seed=0, settings=SETTINGS, slot=2).to_attr()
    attrs = {DRAW_KEY: record, FIXED_PARAMS_KEY: {"x": 0.5}}
    params = {"x": 0.5, "kind": "a"}
    failed = {"state": TrialState.FAIL, "value": None}
    assert others_of(trial(0, params, system_attrs=attrs)).given == {2}
    for by, given in (("machine", {2}), ("objective", set())):
        lost = trial(0, params, system_attrs=attrs | {FAILURE_KEY: {"by": by}}, **failed)
        assert others_of(lost).given == given
    assert others_of(trial(0, params, system_attrs={DRAW_KEY: record})).given == set()
    assert others_of(trial(0, params, system_attrs={FIXED_PARAMS_KEY: {}})).given == set()
