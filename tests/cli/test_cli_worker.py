"""s2e worker as it joins `s2e search`; tests/parallel has its signals and its own objectives."""

import pytest
from commands import N_SEARCHED, Searched, only_line, study

from optuna_s2e.analysis import Snapshot
from optuna_s2e.cli import main
from optuna_s2e.history import extend_search


def test_worker_goes_on_with_a_search_and_stops_when_it_is_complete(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["worker", "--no-dashboard"]) == 0
    assert f"Study 's' is complete: {N_SEARCHED} trials." in capsys.readouterr().out
    assert main(["worker", "--no-dashboard", "--trials", str(N_SEARCHED + 2)]) == 0
    out = capsys.readouterr().out
    assert f"Working on study 's' until {N_SEARCHED + 2} trials are complete." in out
    assert "Complete: 2 trials began meanwhile, other workers' included." in out
    assert [t.state.name for t in study().trials] == ["COMPLETE"] * (N_SEARCHED + 2)


def test_worker_extends_the_search_for_pages_and_other_workers(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = ["worker", "--no-dashboard"]
    assert main([*worker, "--trials", str(N_SEARCHED + 2)]) == 0
    assert Snapshot.of(study()).n_planned == N_SEARCHED + 2
    assert main([*worker, "--trials", "1"]) == 0  # ends at once, and changes nothing for others
    assert Snapshot.of(study()).n_planned == N_SEARCHED + 2
    extend_search(study(), N_SEARCHED + 3)
    assert main(worker) == 0
    out = capsys.readouterr().out
    assert f"until {N_SEARCHED + 3} trials are complete" in out
    assert len(study().trials) == N_SEARCHED + 3


def test_objective_beside_that_of_the_search_is_refused(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    line = only_line(capsys, "worker", "--objective", "commands:make_arrays")
    assert "leave out --objective" in line
