"""A study that goes on with another sampler: who is told, in which words, and who is not."""

import warnings
from collections.abc import Callable

import optuna
import pytest
from batches import K, parabola
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from optuna_s2e import S2ESampler, optimize_batch
from optuna_s2e.parallel import find_sampler_change, work


def s2e() -> S2ESampler:
    return S2ESampler(population_size=K, seed=0, estimator="natural")


def by_optuna(study: optuna.Study) -> None:
    study.optimize(parabola, n_trials=2)


def by_batch(study: optuna.Study) -> None:
    size = None if isinstance(study.sampler, S2ESampler) else K
    optimize_batch(study, parabola, K, batch_size=size)


def by_worker(study: optuna.Study) -> None:
    work(study, parabola, len(study.trials) + 2)


Run = Callable[[optuna.Study], None]


@pytest.mark.parametrize("go_on", [by_batch, by_worker])
@pytest.mark.parametrize(
    ("begin", "first", "then", "names"),
    [
        (by_optuna, s2e, TPESampler, ("S2ESampler", "TPESampler")),
        (by_optuna, TPESampler, s2e, ("a sampler other than S2ESampler", "S2ESampler")),
        (by_batch, TPESampler, s2e, ("TPESampler", "S2ESampler")),
        (by_batch, TPESampler, RandomSampler, ("TPESampler", "RandomSampler")),
        (by_worker, RandomSampler, TPESampler, ("RandomSampler", "TPESampler")),
    ],
)
def test_another_sampler_is_named_once_beside_the_first(
    begin: Run,
    first: Callable[[], BaseSampler],
    then: Callable[[], BaseSampler],
    names: tuple[str, str],
    go_on: Run,
) -> None:
    storage = optuna.storages.InMemoryStorage()
    begin(optuna.create_study(storage=storage, study_name="s", sampler=first()))
    study = optuna.load_study(storage=storage, study_name="s", sampler=then())
    with pytest.warns(UserWarning, match="was searched with") as caught:
        go_on(study)
    (warning,) = (w for w in caught if "was searched with" in str(w.message))
    text = str(warning.message)
    assert f"was searched with {names[0]} (" in text
    assert f"goes on with {names[1]}." in text
    go_on(study)  # -W error: the newest trial is of this sampler now


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("begin", [by_optuna, by_batch, by_worker])
@pytest.mark.parametrize("sampler", [s2e, TPESampler])
def test_the_same_sampler_is_nothing_to_say(
    begin: Run, sampler: Callable[[], BaseSampler]
) -> None:
    study = optuna.create_study(sampler=sampler())
    study.enqueue_trial({"x0": 0.5})
    begin(study)
    study.enqueue_trial({"x0": 0.5, "x1": 0.5, "x2": 0.5, "kind": "a"})
    study.sampler = sampler()
    assert find_sampler_change(study) is None
    study.sampler = PartialFixedSampler({"x0": 0.5}, study.sampler)
    assert find_sampler_change(study) is None


def test_a_new_study_and_damaged_marks_are_nothing_to_say() -> None:
    study = optuna.create_study(sampler=s2e())
    assert find_sampler_change(study) is None
    for value in (7, None, ["TPESampler"]):
        study.add_trial(create_trial(value=1.0, system_attrs={"s2e:sampler": value}))
    assert find_sampler_change(study) is None
    study.add_trial(create_trial(value=1.0, system_attrs={"s2e:sampler": "\x1b[31m" + "x" * 999}))
    text = find_sampler_change(study)
    assert text is not None
    assert "\x1b" not in text
    assert len(text) < 500
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.sampler = RandomSampler()
        assert "goes on with RandomSampler" in str(find_sampler_change(study))
