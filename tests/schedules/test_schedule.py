"""Schedules and their spaces: what is drawn, stored, read back and refused."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FixedTrial

from optuna_s2e import (
    Schedule,
    ScheduleSpace,
    coteaching_schedule,
    table1_schedule,
)
from optuna_s2e.distributions import _simplex as simplex
from optuna_s2e.schedules._schedule import n_kept

KINDS = ["eq1", "table1"]


def draw(space: ScheduleSpace, seed: int) -> tuple[Schedule, optuna.trial.FrozenTrial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    schedules = []

    def objective(trial: optuna.Trial) -> float:
        schedules.append(space.suggest(trial))
        return 0.0

    study.optimize(objective, n_trials=1)
    return schedules[0], study.trials[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_epochs", [2, 30, 200])
def test_random_schedules_are_valid(kind: str, n_epochs: int) -> None:
    for seed in range(20):
        rates = draw(ScheduleSpace(n_epochs, kind), seed)[0].keep_rates
        assert rates.shape == (n_epochs,)
        assert rates[0] == 1
        assert np.all((rates > 0) & (rates <= 1))


@pytest.mark.parametrize("kind", KINDS)
def test_stored_trial_alone_gives_its_schedule_back(kind: str) -> None:
    schedule, trial = draw(ScheduleSpace(17, kind), seed=3)
    assert Schedule.from_trial(trial) == schedule
    assert ScheduleSpace(17, kind).from_params(trial.params) == schedule


def test_number_of_parameters() -> None:
    searched = {k: [d for d in ScheduleSpace(9, k).distributions.values() if not d.single()]
                for k in KINDS}  # fmt: skip
    assert len(searched["table1"]) == 3 + 16
    assert len(searched["eq1"]) == 3
    assert len(simplex.find_simplexes(ScheduleSpace(9, "table1").distributions)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_schedule_can_be_enqueued(kind: str) -> None:
    space = ScheduleSpace(17, kind)
    wanted = draw(space, seed=5)[0]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(space.to_params(wanted))
    got = []

    def objective(trial: optuna.Trial) -> float:
        got.append(space.suggest(trial))
        return 0.0

    study.optimize(objective, n_trials=1)
    assert got[0] == wanted


def test_hand_made_table1_schedule_can_be_encoded() -> None:
    alpha, a = [0.5, 0.25, 0.25, 0.0], np.full((4, 4), 0.3)
    space = ScheduleSpace(12, "table1")
    params = space.to_params(table1_schedule(12, alpha, a))
    np.testing.assert_allclose(
        space.from_params(params).keep_rates, table1_schedule(12, alpha, a).keep_rates
    )


def test_schedule_of_another_origin_is_not_encoded() -> None:
    with pytest.raises(ValueError, match=r"must come from ScheduleSpace\(n_epochs=3.*an array"):
        ScheduleSpace(3).to_params(Schedule([1, 0.5, 0.5]))
    with pytest.raises(ValueError, match="kind='table1'"):
        ScheduleSpace(12).to_params(draw(ScheduleSpace(12, "table1"), 0)[0])


def test_curves_on_a_grid_follow_the_schedule() -> None:
    space = ScheduleSpace(31, "table1")
    schedules = [draw(space, seed)[0] for seed in range(4)]
    params: dict[str, Any] = {
        n: [s.params[n] for s in schedules if s.params] for n in space.distributions
    }
    curves = space.curves(params, n_points=11)
    assert curves.shape == (4, 11)
    np.testing.assert_allclose(curves, [s.keep_rates[::3] for s in schedules], rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_json_reads_back_exactly(kind: str, tmp_path: Path) -> None:
    schedule = draw(ScheduleSpace(23, kind), seed=8)[0]
    assert Schedule.from_json(schedule.to_json()) == schedule
    schedule.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == schedule
    bare = Schedule(schedule.keep_rates)
    assert Schedule.from_json(bare.to_json()) == bare
    assert list(tmp_path.iterdir()) == [tmp_path / "schedule.json"]


def damage(**changes: Any) -> str:
    document = json.loads(coteaching_schedule(3, 0.5).to_json())
    return json.dumps(document | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1, 2]", "no schedule"),
        (damage(version=2), '"version" must be 1'),
        (damage(n_epochs=4), "damaged"),
        (damage(keep_rates=[1, 0.5, None]), "list of numbers"),
        (damage(keep_rates=[1, 0.5, 1.5]), r"must be in \(0, 1\], but got 1.5 at epoch 2"),
        (damage(keep_rates=[1, 0.5, float("nan")]), "at epoch 2"),
        (damage(keep_rates=[0.9, 0.5, 0.5]), r"keep_rates\[0\] must be 1"),
        (damage(keep_rates=[1, 0.5, 0.4]), "decode to other values"),
        (damage(params={"R.eq1": 9, "R.n_epochs": 3}), "version"),
        (damage(params=3), '"params" must be'),
        (coteaching_schedule(3, 0.5).to_json()[:-20], "no JSON"),
    ],
)
def test_damaged_file_is_one_clear_error(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)bad\.json is no schedule file\..*{message}"):
        Schedule.load(path)


@pytest.mark.parametrize(
    ("keep_rate", "batch_size", "expected"),
    [(1.0, 128, 128), (0.29, 100, 29), (0.5, 7, 3), (1e-6, 128, 1), (0.999, 10, 9)],
)
def test_number_of_kept_samples(keep_rate: float, batch_size: int, expected: int) -> None:
    assert n_kept(keep_rate, batch_size) == expected
    assert Schedule([1, keep_rate]).n_kept(batch_size).tolist() == [batch_size, expected]


def test_schedule_cannot_be_changed() -> None:
    rates = np.array([1.0, 0.5])
    schedule = Schedule(rates)
    rates[1] = 0.9
    assert schedule.keep_rates[1] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        schedule.keep_rates[1] = 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ScheduleSpace(1), "n_epochs must be an int in"),
        (lambda: ScheduleSpace(2.0), "n_epochs must be an int in"),  # type: ignore[arg-type]
        (lambda: ScheduleSpace(True), "n_epochs must be an int in"),
        (
            lambda: ScheduleSpace(5, "spline"),
            "kind must be one of 'eq1', 'table1', but got 'spline'",
        ),
        (lambda: n_kept(0.5, 0), "batch_size must be an int of at least 1, but got 0"),
        (
            lambda: ScheduleSpace(5).from_params({"R.tau": 0.96, "R.tk": 2.0, "R.c": 1.0}),
            r"R.tau must be a number in \[0, 0.95\], but got 0.96",
        ),
        (lambda: Schedule.from_params({"x": 1}), "must name one schedule space"),
        (lambda: ScheduleSpace(5).from_params({"R.tau": 0.5}), "R.tk is missing"),
        (lambda: ScheduleSpace(5).from_params({"R.n_epochs": 6}), "R.n_epochs must be 5"),
        (lambda: Schedule([]), "must have shape"),
        (lambda: Schedule([[1.0]]), "must have shape"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_error_names_the_trial() -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ValueError, match="Trial 0 holds no schedule"):
        Schedule.from_trial(study.trials[0])


def test_suggest_works_with_a_fixed_trial() -> None:
    schedule = coteaching_schedule(8, 0.5)
    assert ScheduleSpace(8).suggest(FixedTrial(dict(schedule.params or {}))) == schedule


def test_a_file_is_written_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "kept" / "schedule.json"
    target.write_text("old")
    link.symlink_to(target)
    schedule = coteaching_schedule(5, 0.5, 3)
    schedule.save(link)
    assert link.is_symlink()
    assert target.read_text() == schedule.to_json()
    assert sorted(p.name for p in target.parent.iterdir()) == ["schedule.json"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """Nor is a device: /dev/stdout prints the schedule, and /dev/full stays what it is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    schedule = coteaching_schedule(5, 0.5, 3)
    schedule.save(pipe)
    assert os.read(reader, 10_000).decode() == schedule.to_json()
    os.close(reader)
    assert pipe.is_fifo()
