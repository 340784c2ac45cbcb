"""The study of the basis functions in small: fits, draws, table and picture."""

from functools import partial
from pathlib import Path

import figure2_basis as figure2
import numpy as np
import runs
import spaces

from optuna_s2e import ScheduleSpace, coteaching_schedule

SETUP = {"n_epochs": 20, "n_drawn": 100}


def test_targets_are_the_schedules_in_use():
    for name, rate in (("20", 0.2), ("45", 0.45), ("50", 0.5)):
        found = figure2.TARGETS[f"Co-teaching, {name} % wrong"](200).keep_rates
        np.testing.assert_array_equal(found, coteaching_schedule(200, rate).keep_rates)
    space = ScheduleSpace(200, noise_rate=0.5)
    found = figure2.TARGETS["suggested for 50 % wrong"](200).keep_rates
    np.testing.assert_array_equal(found, space.middle.keep_rates)


def test_a_fit_measures_its_distance():
    name = "falls late"
    found = figure2.run((name, "Table 1"), **SETUP)
    off = np.array(found["keep_rates"]) - figure2.TARGETS[name](20).keep_rates
    assert abs(np.sqrt(np.mean(off**2)) - found["rms"]) < 1e-4
    assert abs(np.abs(off).max() - found["largest"]) < 1e-4


def test_draws_are_described_before_they_are_clipped():
    found = figure2.draws(200, 2000)
    assert 1.0 < found["largest"] <= 2.0  # f_i(t; a) <= 1 + a_3
    assert found["share below 0 at an epoch"] == 0.0
    # 20,000 uniform draws of another program: 22 % exceed 1, 7.5 % never rise
    assert abs(found["share above 1 at an epoch"] - 0.22) < 0.03
    assert abs(found["share that never rises"] - 0.075) < 0.02
    low, *_, high = np.array(found["percentiles"])
    assert low.shape == (199,)
    assert (low < high).all()


def test_the_table_and_the_picture_show_what_is_done(tmp_path: Path):
    results = {
        runs.key_of(("falls late", space)): {
            "rms": 0.1234, "largest": 0.5, "keep_rates": [1.0] * 20
        }
        for space in ("f1 alone", "Table 1")
    }  # fmt: skip
    document = {"results": results, "n_epochs": 20}
    assert figure2.report(document).splitlines()[-1].split() == [
        "falls", "late", "0.123", "/", "0.500", "-", "-", "-", "0.123", "/", "0.500"
    ]  # fmt: skip
    figure2.draw(document, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_the_results():
    page = Path(__file__).parents[2] / "docs" / "reproduction" / "figure2.md"
    text = figure2.markdown(runs.read(figure2.RESULTS))
    assert runs.filled(page.read_text(), "figure 2", text) == page.read_text()


def test_the_smoke_run_keeps_nothing(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(figure2, "fit", partial(spaces.fit, n_starts=1))
    before = figure2.RESULTS.exists() and figure2.RESULTS.read_bytes()
    figure2.main(["--smoke", "--picture", str(tmp_path / "figure.png")])
    assert capsys.readouterr().out.startswith("T = 20; ")
    assert (figure2.RESULTS.exists() and figure2.RESULTS.read_bytes()) == before
    assert (tmp_path / "figure.png").exists()


def test_the_budget_counts_all_fits(monkeypatch):
    monkeypatch.setattr(figure2, "fit", partial(spaces.fit, n_starts=1))
    assert figure2.budget(2, SETUP).startswith("26 runs: ")
