"""The plots and the status page of a study, of whichever sampler and state."""

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from observed_storages import GrowingStorage
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna_dashboard import get_note
from reporting import PLOTS, detail, make_objective, plots, search_with

from optuna_s2e import S2ESampler, open_storage, suggest_simplex
from optuna_s2e.dashboard import DashboardReporter, serve


def test_other_studies_get_what_they_have(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s2e.db")
    reporter = DashboardReporter(tmp_path / "pictures")
    random = optuna.create_study(storage=storage, sampler=RandomSampler(seed=0))
    random.optimize(make_objective(reporter), n_trials=6, callbacks=[reporter])
    weights = optuna.create_study(storage=storage, sampler=S2ESampler(population_size=3))
    weights.optimize(
        lambda t: float(suggest_simplex(t, "w", 3)[0]), n_trials=6, callbacks=[reporter]
    )
    both = optuna.create_study(storage=storage, directions=["minimize", "minimize"])
    with pytest.warns(RuntimeWarning, match="one objective"):
        both.optimize(lambda t: (t.suggest_float("x", 0, 1), 0.0), 2, callbacks=[reporter])
    with serve(storage) as base:
        assert set(plots(detail(base, 1))) == {"s2e_1_schedules", "s2e_4_curves"}
        assert set(plots(detail(base, 2))) == PLOTS - {"s2e_1_schedules"}
        assert "Generation 2" in detail(base, 2)["note"]["body"]
        assert not plots(detail(base, 3))


class MixingStorage(InMemoryStorage):
    """A storage in which another worker overwrites a piece of a plot, once."""

    n_mixed = 0

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        super().set_study_system_attr(study_id, key, value)
        if key == "dashboard:plot_data:s2e_1_schedules:0" and not self.n_mixed:
            self.n_mixed += 1
            super().set_study_system_attr(study_id, key, '{"data": [oth')


def test_plots_that_another_worker_mixed_up_are_written_again(tmp_path: Path) -> None:
    storage = MixingStorage()
    study = optuna.create_study(storage=storage, sampler=S2ESampler(population_size=4, seed=0))
    reporter = DashboardReporter(tmp_path / "pictures")
    study.optimize(make_objective(reporter), n_trials=4)
    reporter.paint(study)
    assert storage.n_mixed == 1
    with serve(study) as base:
        assert set(plots(detail(base, study._study_id))) == PLOTS  # all are JSON


def test_a_copied_and_an_imported_study_are_painted(study: optuna.Study, tmp_path: Path) -> None:
    search_with(study, DashboardReporter(tmp_path / "pictures"), n_trials=5)
    other = open_storage(f"sqlite:///{tmp_path}/other.db")
    optuna.create_study(study_name="first", storage=other).optimize(lambda t: 0.0, n_trials=3)
    optuna.copy_study(
        from_study_name="s", from_storage=study._storage, to_storage=other, to_study_name="copy"
    )
    copy = optuna.load_study(study_name="copy", storage=other)
    DashboardReporter(tmp_path / "pictures").repaint(copy)
    with serve(other, tmp_path / "pictures") as base:
        answer = detail(base, copy._study_id)
        assert set(plots(answer)) == PLOTS
        for trial in answer["trials"]:
            assert f"/artifacts/{copy._study_id}/{trial['trial_id']}/" in trial["note"]["body"]


@pytest.mark.parametrize("n_before", [0, 1, 13])
def test_pages_of_a_growing_study_agree(tmp_path: Path, n_before: int) -> None:
    """Another worker completes a trial before each read of the storage."""
    reporter = DashboardReporter(None)
    source = optuna.create_study(sampler=S2ESampler(population_size=4, seed=0))
    source.optimize(make_objective(reporter), n_trials=60)
    storage = GrowingStorage()
    study = optuna.create_study(storage=storage)
    study.add_trials(source.trials[:n_before])
    with storage.growing(study, source.trials[n_before:]):
        reporter.paint(study)
    note = get_note(study)
    n = int(re.search(r"· (\d+) trials", note)[1])  # type: ignore[index]
    assert n_before < n < len(study.trials)  # it has grown before and after the trials were read
    rows = [line.replace("\N{EM SPACE}", "").split("|") for line in note.splitlines()]
    table = [row for row in rows if len(row) == 8 and row[1].strip().isdigit()]
    assert sum(int(row[4]) for row in table) == n
    assert f"Generation {len(table)}" in note
    with serve(study) as base:
        drawn = plots(detail(base, study._study_id))
    assert sorted(drawn["s2e_3_generations"]["data"][0]["customdata"]) == list(range(n))
    names = [trace.get("name", "") for trace in drawn["s2e_4_curves"]["data"]]
    assert f"all {n}: median, 80 %" in names
