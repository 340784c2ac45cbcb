"""From which space a draw is, on draws of a short search."""

import optuna

from optuna_s2e import S2ESampler
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history import Ledger, Rules, locate, space_of

K = 3


def search(n_trials: int) -> Ledger:
    """Search a category and a float; trial K opens generation 1."""
    sampler = S2ESampler(population_size=K, seed=0, estimator="natural")
    study = optuna.create_study(sampler=sampler)
    study.optimize(
        lambda trial: (
            trial.suggest_float("x", 0, 1) + (trial.suggest_categorical("c", ["a", "b"]) == "b")
        ),
        n_trials=n_trials,
    )
    return Ledger(Rules()).read(study.trials)


def test_a_first_generation_has_the_tags_that_its_members_agree_on() -> None:
    ledger = search(K)
    named = [{"R.eq1": 1, "R.n_epochs": 9}, {"R.eq1": 1, "R.n_epochs": 8}, {}]
    draws = [d._replace(tags=t) for d, t in zip(ledger.completed, named, strict=True)]
    assert space_of(draws).tags == {"R.eq1": 1}


def test_a_draw_from_a_theta_of_another_space_or_of_none_is_not_from_the_space() -> None:
    ledger = search(2 * K)
    chain, draw = ledger.state(K).chain, ledger.draws[K + 1]
    assert chain is not None
    assert not isinstance(locate(draw, chain.space, ledger.openers), str)
    x_alone = SearchSpace.of({"x": chain.space.distributions["x"]}, {})
    reason = "it was drawn from a theta of another space"
    assert locate(draw, x_alone, ledger.openers) == reason
    assert locate(draw, chain.space, {}) == reason


def test_a_draw_that_names_another_schedule_space_says_which() -> None:
    ledger = search(K)
    space = SearchSpace.of(dict(space_of(ledger.completed).distributions), {"R.eq1": 1})
    draw = ledger.completed[0]
    assert not isinstance(locate(draw._replace(tags={"R.eq1": 1}), space, {}), str)
    found = locate(draw._replace(tags={"R.eq1": 2}), space, {})
    assert found == "its schedule space is {'R.eq1': 2}, not {'R.eq1': 1}"
