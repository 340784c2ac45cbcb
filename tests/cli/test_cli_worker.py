"""s2e worker as it joins `s2e search`; tests/parallel has its signals and its own objectives."""

import pytest
from commands import N_SEARCHED, Searched, only_line, study

from optuna_s2e.cli import main


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


def test_objective_beside_that_of_the_search_is_refused(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    line = only_line(capsys, "worker", "--objective", "commands:make_arrays")
    assert "leave out --objective" in line
