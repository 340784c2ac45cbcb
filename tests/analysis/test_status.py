"""The text of `s2e status`, and the verification of thetas."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import S2ESampler
from optuna_s2e._attributes import DRAW_KEY
from optuna_s2e.analysis import Snapshot, describe, verify

K = 4


def searched(n_trials: int = 2 * K + 1, direction: str = "minimize") -> optuna.Study:
    study = optuna.create_study(
        study_name="s", direction=direction, sampler=S2ESampler(population_size=K, seed=0)
    )
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n_trials)
    return study


def copied(trials: list[FrozenTrial]) -> Snapshot:
    study = optuna.create_study(study_name="s")
    study.add_trials(trials)
    return Snapshot.of(study)


def test_the_page_names_states_the_best_and_each_generation() -> None:
    study = searched()
    study.ask().suggest_float("x", 0, 1)
    page = describe(Snapshot.of(study)).splitlines()
    best = study.best_trial
    assert page[0] == "Study 's': 1 running, 9 complete"
    assert page[1] == f"Best: trial {best.number}, value {best.value:.6g}"
    assert page[2].startswith("Recommended: trial ")
    table = [line.split() for line in page[-4:]]
    assert table[0] == [
        "generation", "opener", "trials", "complete", "best", "value", "mean", "value",
    ]  # fmt: skip
    assert [row[:4] for row in table[1:]] == [
        ["0", "-", "4", "4"],
        ["1", "4", "4", "4"],
        ["2", "8", "2", "1"],
    ]
    values = [t.value for t in study.trials[:K] if t.value is not None]
    assert float(table[1][4]) == pytest.approx(min(values), rel=1e-4)
    assert float(table[1][5]) == pytest.approx(sum(values) / K, rel=1e-4)


def test_a_study_that_maximises_shows_its_values() -> None:
    study = searched(direction="maximize")
    row = describe(Snapshot.of(study)).splitlines()[-3].split()
    values = [t.value for t in study.trials[:K] if t.value is not None]
    assert float(row[4]) == pytest.approx(max(values), rel=1e-4)
    assert float(row[5]) == pytest.approx(sum(values) / K, rel=1e-4)


def test_counts_and_best_of_the_table_are_those_of_the_study() -> None:
    """Pruned and failed trials are drawn, but not complete; others are named below the table."""

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number % 5 == 1:
            raise ValueError
        if trial.number % 5 == 2:
            trial.report(x - 9, 0)
            raise optuna.TrialPruned
        return x

    study = optuna.create_study(sampler=S2ESampler(population_size=K, seed=0))
    study.enqueue_trial({"x": 0.5})
    study.optimize(objective, n_trials=30, catch=ValueError)
    page = describe(Snapshot.of(study)).splitlines()
    assert page[0].endswith(": 18 complete, 6 pruned, 6 fail")
    start = next(i for i, line in enumerate(page) if "opener" in line) + 1
    rows = [line.split() for line in page[start:-2]]
    assert sum(int(row[2]) for row in rows) == 29
    assert sum(int(row[3]) for row in rows) == 17  # without the enqueued one
    best = min(t.value for t in study.get_trials(states=[TrialState.COMPLETE]) if t.number)
    assert min(float(row[4]) for row in rows) == pytest.approx(best, rel=1e-4)
    assert page[-1].startswith("Not in the table: 1 trial (enqueued")


def test_what_a_recommendation_does_not_use_is_said() -> None:
    study = searched()
    study.add_trial(optuna.create_trial(
        params={"x": 2.0}, distributions={"x": FloatDistribution(0, 3)}, value=0.0
    ))  # fmt: skip
    line = next(x for x in describe(Snapshot.of(study)).splitlines() if "Recommended" in x)
    assert line.endswith("], without 1 trial of another space")


def test_what_cannot_be_recommended_is_said() -> None:
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=1.0))
    page = describe(Snapshot.of(study))
    assert "Best: trial 0, value 1" in page
    assert "no trial has a parameter with more than one value" in page


def test_infinite_values_have_no_best_trial() -> None:
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=float("inf")))
    page = describe(Snapshot.of(study))
    assert "Best:" not in page
    assert "Recommended: none" in page


def test_sound_records_verify_bit_for_bit() -> None:
    assert verify(Snapshot.of(searched())) == (True, "verify: 3 generations replay bit for bit.")


def test_another_kind_of_machine_is_no_mismatch() -> None:
    trials = searched().trials
    record = trials[K].system_attrs[DRAW_KEY]
    rounded = [t * (1 + 1e-13) for t in record["theta"]]
    trials[K].system_attrs[DRAW_KEY] = record | {"theta": rounded}
    sound, message = verify(copied(trials))
    assert sound
    assert "within 1e-09, not bit for bit" in message


def test_a_forged_theta_is_a_mismatch() -> None:
    trials = searched().trials
    record = trials[K].system_attrs[DRAW_KEY]
    forged = [t + 1e-6 for t in record["theta"]]
    trials[K].system_attrs[DRAW_KEY] = record | {"theta": forged}
    sound, message = verify(copied(trials))
    assert not sound
    assert message.startswith("verify: FAILED: theta of generation 1 is recorded as ")


@pytest.mark.parametrize("number", [1, K])  # a member; an opener
def test_missing_records_are_a_mismatch(number: int) -> None:
    trials = searched().trials
    trials[number].system_attrs[DRAW_KEY] = "x"
    sound, message = verify(copied(trials))
    assert not sound
    assert message.startswith("verify: FAILED: ")


def test_thetas_of_another_releases_model_are_named_and_count_as_sound() -> None:
    trials = searched(4 * K).trials
    for opener, model in ((K, {}), (2 * K, {"model": 99})):
        record = trials[opener].system_attrs[DRAW_KEY]
        rest = {n: v for n, v in record.items() if n != "model"}
        trials[opener].system_attrs[DRAW_KEY] = rest | model
    assert verify(copied(trials)) == (
        True,
        "verify: 2 generations replay bit for bit. 2 could not be checked (1, 2): another "
        "release's model of the loss moved theta there, and this release takes it as recorded.",
    )
    only = verify(copied(trials[: K + 1]))
    assert only.message.startswith("verify: 1 generation replays bit for bit. 1 could not be")
    damaged = trials[1].system_attrs | {DRAW_KEY: "x"}
    trials[1].system_attrs.update(damaged)
    assert not verify(copied(trials)).sound
