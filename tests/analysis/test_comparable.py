"""Which trials can be compared: the newest ones after a change, all by design, no odd ones."""

from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Int
from optuna.trial import FrozenTrial

from optuna_s2e import ScheduleSpace
from optuna_s2e.analysis._comparable import find_comparable, find_of_space
from optuna_s2e.distributions import SearchSpace

OLD, NEW, ODD = Float(0, 1), Float(0, 3), Float(0, 9)


def trials(*spaces: dict[str, BaseDistribution], **params: list[Any]) -> list[FrozenTrial]:
    """Return one trial of each space; values are the lowest ones or the given ones."""
    made = []
    for number, space in enumerate(spaces):
        values = {
            n: params[n][number] if n in params
            else d.choices[0] if isinstance(d, CategoricalDistribution)
            else d.low  # type: ignore[attr-defined]
            for n, d in space.items()
        }  # fmt: skip
        made.append(optuna.create_trial(params=values, distributions=space, value=0.0))
        made[-1].number = number
    return made


def of_x(*distributions: BaseDistribution) -> list[FrozenTrial]:
    return trials(*({"x": d} for d in distributions))


@pytest.mark.parametrize(
    ("distributions", "kept", "space"),
    [
        ([OLD] * 5, range(5), OLD),
        ([OLD] * 5 + [NEW] * 3, range(5, 8), NEW),  # changed
        ([OLD] * 5 + [NEW] * 2, range(5), OLD),  # not known to be a change yet
        ([OLD] * 5 + [NEW] * 3 + [OLD] + [NEW] * 3, [5, 6, 7, 9, 10, 11], NEW),  # a late worker
        ([OLD] * 3 + [ODD] + [OLD] * 3, [0, 1, 2, 4, 5, 6], OLD),
        ([OLD] * 4 + [NEW] * 4 + [ODD], range(4, 8), NEW),
        ([OLD, NEW] * 5, range(10), NEW),  # by design
        ([OLD, NEW] * 5 + [ODD], range(10), NEW),
        ([Float(i / 10, 1) for i in range(5)], range(5), OLD),
        ([Int(i, 4) for i in range(5)], range(5), Int(0, 4)),
        ([Float(1, 2, log=True), Float(2, 9, log=True)] * 4, range(8), Float(1, 9, log=True)),
        ([Float(0, 1, step=0.5), Float(0, 2, step=0.25)] * 4, range(8), Float(0, 2)),
        ([Float(0, 1), Int(0, 9)] * 4, range(8), None),
    ],
)
def test_which_of_several_ranges_count(
    distributions: list[BaseDistribution], kept: Any, space: BaseDistribution | None
) -> None:
    found = find_comparable(of_x(*distributions))
    assert [t.number for t in found.trials] == list(kept)
    assert found.space.distributions == ({} if space is None else {"x": space})
    assert found.left_out_params == (() if space is not None else ("x",))


AB = CategoricalDistribution(["a", "b"])


@pytest.mark.parametrize("in_blocks", [True, False])
def test_a_range_that_a_category_decides_was_not_changed(in_blocks: bool) -> None:
    branch = ["a"] * 5 + ["b"] * 5 if in_blocks else ["a", "b"] * 5
    made = trials(*({"c": AB, "x": {"a": OLD, "b": NEW}[c]} for c in branch), c=branch)
    found = find_comparable(made)
    assert found.trials == made
    assert found.space.distributions == {"c": AB, "x": NEW}


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("kinds", [("eq1", None), ("eq1", "table1"), (None, "table1")])
def test_a_schedule_that_a_category_decides_was_not_changed(in_blocks: bool, kinds: Any) -> None:
    branch = ["a"] * 5 + ["b"] * 5 if in_blocks else ["a", "b"] * 5
    spaces = [ScheduleSpace(9, kind).distributions if kind else {} for kind in kinds]
    made = trials(*({"c": AB, **spaces["ab".index(c)]} for c in branch), c=branch)
    found = find_comparable(made)
    assert found.trials == made
    tags = [ScheduleSpace(9, kind).tags for kind in kinds if kind]
    assert found.space.tags == {name: value for t in tags for name, value in t.items()}


def test_a_schedule_of_another_kind_or_length_was_changed() -> None:
    for first, second in [((9, "eq1"), (9, "table1")), ((9, "table1"), (8, "table1"))]:
        spaces = [ScheduleSpace(*s).distributions for s in (first, second)]
        made = trials(*({"lr": OLD, **s} for s in [spaces[0]] * 6 + [spaces[1]] * 4))
        found = find_comparable(made)
        assert [t.number for t in found.trials] == [6, 7, 8, 9]
        assert found.space.tags == ScheduleSpace(*second).tags


def test_objectives_without_a_common_parameter_are_never_mixed() -> None:
    one, other = {"x": OLD, "y": OLD}, {"z": OLD}
    for spaces, kept in [
        ([one] * 4 + [other], [0, 1, 2, 3]),
        ([one] * 4 + [other] * 3, [4, 5, 6]),
        ([one, {"y": OLD}, {}, {"x": OLD}], [0, 1, 3]),  # x and y through the first
        ([{}, {}], [0, 1]),
    ]:
        assert [t.number for t in find_comparable(trials(*spaces)).trials] == kept


def test_choices_that_are_lists_or_nan_are_compared() -> None:
    choices = CategoricalDistribution([float("nan"), "a", None])
    assert len(find_comparable(of_x(*[choices] * 4)).trials) == 4


def test_trials_of_a_space_have_its_parameters_and_tags() -> None:
    space = SearchSpace.of({"x": OLD, "y": OLD}, {"R.eq1": 1, "R.n_epochs": 9})
    tags = ScheduleSpace(9).distributions
    others = {**ScheduleSpace(8).distributions, "x": OLD}
    made = trials({"x": OLD}, {"x": NEW, "y": OLD}, {"z": OLD}, {"y": OLD, **tags}, others)
    assert [t.number for t in find_of_space(made, space).trials] == [0, 3]
