"""The text of the pages: it agrees with the study, keeps a person's own text, and is inert."""

import re
from pathlib import Path

import optuna
import pytest
from optuna_dashboard import get_note, save_note
from reporting import make_objective

from optuna_s2e import S2ESampler, ScheduleSpace, open_storage, recommend
from optuna_s2e._attributes import (
    CLASSIFIER_KEY,
    COMMAND_KEY,
    N_TRIALS_KEY,
    NOISE_KEY,
    RecordedNoise,
)
from optuna_s2e.analysis import Snapshot
from optuna_s2e.dashboard import DashboardReporter
from optuna_s2e.dashboard._markdown import BEGIN, END, code, code_block, merge, table
from optuna_s2e.dashboard._notes import MAX_ROWS, shown_command, study_note

HOSTILE = "a|b`c``d\n```\n<script>alert(1)</script> ![x](http://evil/x.png) www.evil.com ‮"


def test_a_persons_text_survives(study: optuna.Study, tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    save_note(study, "My *plan*.\n")
    study.optimize(make_objective(reporter), n_trials=4, callbacks=[reporter])
    text = get_note(study)
    assert text.startswith("My *plan*.\n\n[s2e-begin]")
    save_note(study, text + "\nMy conclusion.\n")
    study.optimize(make_objective(reporter), n_trials=4, callbacks=[reporter])
    assert get_note(study).startswith("My *plan*.\n\n[s2e-begin]")
    assert get_note(study).endswith("\nMy conclusion.\n")
    assert "8 trials" in get_note(study)
    assert get_note(study).count("[s2e-begin]") == 1


def test_strings_of_the_database_are_inert(tmp_path: Path) -> None:
    reporter = DashboardReporter(tmp_path / "pictures")
    study = optuna.create_study(
        study_name=HOSTILE,
        storage=open_storage(f"sqlite:///{tmp_path}/s2e.db"),
        sampler=S2ESampler(population_size=2),
    )
    study.set_user_attr("s2e:command", HOSTILE)
    study.set_user_attr("s2e:n_trials", HOSTILE)
    study.optimize(lambda t: t.suggest_float(HOSTILE, 0, 1), n_trials=4, callbacks=[reporter])
    note = get_note(study)
    assert "‮" not in note
    outside = re.sub(r"^(````+)\n.*?^\1$", "", note, flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", outside)
    for sign in ("<script", "evil", "alert", "a|b"):
        assert sign in note or sign == "a|b"
        assert sign not in outside


def test_commands_are_shown_without_passwords() -> None:
    url = "postgresql+psycopg://me:s3cret@db/s2e?password=s3cret&sslmode=require"
    assert "s3cret" not in shown_command(["s2e", "search", "--storage", url])
    assert "s3cret" not in shown_command(["s2e", "search", f"--storage={url}"])


def status_page(study: optuna.Study) -> str:
    return study_note(
        Snapshot.of(study), study_id=1, url="sqlite:///s2e.db", pictures={}, baselines=[]
    )


def test_the_status_page_says_what_the_study_says(study: optuna.Study) -> None:
    study.set_user_attr(N_TRIALS_KEY, 10)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=9)
    page = status_page(study)
    assert re.match(r"## Generation 3 of 3 · 9 of 10 trials · about \d+ s left \(until ", page)
    best = study.best_trial
    assert f"[#{best.number}](/dashboard/studies/1/trials?numbers={best.number})" in page
    rows = [line.replace("\N{EM SPACE}", "").split("|")[1:-1] for line in page.splitlines()
            if re.match(r"\| .?\d+ \|", line)]  # fmt: skip
    assert [[cell.strip() for cell in row[:4]] for row in rows] == [
        ["0", "-", "4", "4"],
        ["1", "#4", "4", "4"],
        ["2", "#8", "1", "1"],
    ]


def schedule_value(trial: optuna.Trial) -> float:
    return float(ScheduleSpace(8).suggest(trial).keep_rates.mean())


COMMAND = "s2e search --data digits --trials 8 --study-name s"


@pytest.mark.parametrize(
    ("command", "n_planned", "heading", "line"),
    [
        (COMMAND, 12, "# resume the search", COMMAND),
        (COMMAND, 8, "# search on", COMMAND.replace("8", "16")),
        (COMMAND.replace("s 8", "s=8"), 8, "# search on", COMMAND.replace("s 8", "s=16")),
        ("s2e search --data digits", 8, "# search on", "s2e search --data digits --trials 16"),
        (None, 12, "# search on: run your script again (load_if_exists=True)", None),
        (None, 8, "# search on: run your script again (load_if_exists=True), for more trials",
         None),
    ],
)  # fmt: skip
def test_only_an_unfinished_search_is_resumed(
    study: optuna.Study, command: str | None, n_planned: int, heading: str, line: str | None
) -> None:
    study.set_user_attr(N_TRIALS_KEY, n_planned)
    if command is not None:
        study.set_user_attr(COMMAND_KEY, command)
    study.optimize(schedule_value, n_trials=8)
    page = status_page(study)
    lines = page.splitlines()
    assert heading in lines
    if line is not None:
        assert lines[lines.index(heading) + 1] == line
    finished = n_planned == 8
    assert ("finished" in page.splitlines()[0]) == finished
    assert ("resume" in page) == (not finished and command is not None)
    assert ("s2e worker" in page) == (not finished)


def test_the_search_of_a_classifier_names_no_command_that_refuses_it(study: optuna.Study) -> None:
    study.set_user_attr(CLASSIFIER_KEY, {"v": 2})
    study.set_user_attr(N_TRIALS_KEY, 12)
    study.optimize(schedule_value, n_trials=2)
    page = status_page(study)
    assert "# search on: the same `s2e fit`, or your script, again" in page.splitlines()
    assert "s2e export" in page
    assert not any(f"s2e {name} " in page for name in ("search", "worker", "evaluate"))


def test_the_status_page_says_how_many_labels_are_wrong(study: optuna.Study) -> None:
    assert "Noise rate" not in status_page(study)
    noise = RecordedNoise(0.484, (0.441, 0.519), None, used_clean_labels=False, seed=0)
    study.set_user_attr(NOISE_KEY, noise.to_attr())
    line = (
        "\n\nNoise rate, estimated: 48 % of the labels are wrong [44, 52], found without clean "
        "labels.\n\n"
    )
    assert line in status_page(study)
    study.set_user_attr(NOISE_KEY, {**noise.to_attr(), "noise_rate": HOSTILE})
    assert "Noise rate" not in status_page(study)


def test_the_page_leads_to_the_plots_and_explains_what_it_shows(study: optuna.Study) -> None:
    study.optimize(schedule_value, n_trials=9)
    page = status_page(study)
    assert "[Plots](/dashboard/studies/1)" in page
    assert "` R(t) = 1 - tau * min(t / tk, 1) ** c `: tau is the drop, tk the epoch" in page


def recommended_cells(page: str) -> list[str]:
    row = next(line for line in page.splitlines() if line.startswith("| **recommended**"))
    return [cell.strip("\N{EM SPACE} ") for cell in row.split("|")[2:6]]


def test_the_page_says_what_a_recommended_mean_is(study: optuna.Study) -> None:
    study.optimize(schedule_value, n_trials=9)
    page = status_page(study)
    best, picked = study.best_trial, recommend(study)
    low, high = picked.interval
    n = len(picked.mean_of)
    assert n > 1
    assert recommended_cells(page) == [
        f"a mean of {n}",
        "",
        f"{picked.expected_loss:.4g} ({low:.4g} to {high:.4g})",
        ", ".join(f"` {name}={picked.params[name]:.4g} `" for name in ("R.tau", "R.tk", "R.c")),
    ]
    assert (
        f"Trial #{best.number} has the best value, which is partly luck. Recommended is the mean "
        f"of the {n} trained schedules that are best after smoothing"
    ) in page
    assert "The parameters are those of the nearest schedule of the space." in page


def test_the_page_says_which_trial_is_recommended(study: optuna.Study) -> None:
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1) - 0.3) ** 2, n_trials=9)
    page = status_page(study)
    best, picked = study.best_trial, recommend(study)
    assert picked.trial is not None
    low, high = picked.interval
    assert recommended_cells(page)[:3] == [
        f"[#{picked.trial}](/dashboard/studies/1/trials?numbers={picked.trial})",
        f"{study.trials[picked.trial].value:.5g}",
        f"{picked.expected_loss:.4g} ({low:.4g} to {high:.4g})",
    ]
    if picked.trial == best.number:
        assert f"Trial #{best.number} has the best value, and is also the best after" in page
    else:
        assert f"Trial #{best.number} has the best value, which is partly luck. Trial " \
               f"#{picked.trial} is the best after smoothing" in page  # fmt: skip


def test_a_long_table_of_generations_is_cut() -> None:
    study = optuna.create_study(sampler=S2ESampler(population_size=2, estimator="natural", seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2 * MAX_ROWS + 5)
    page = status_page(study)
    assert "The first 3 generations are not shown here" in page
    assert page.count("\n| \N{EM SPACE}") == MAX_ROWS + 1  # and the titles


@pytest.mark.parametrize(
    ("note", "merged"),
    [
        ("", "{}"),
        ("Mine.", "Mine.\n\n{}"),
        ("Mine.\n\n" + BEGIN + "\nold\n" + END + "\nBelow.", "Mine.\n\n{}Below."),
        (BEGIN + "\na\n" + END + "\nMine.\n" + BEGIN + "\nb\n" + END + "\n", "{}Mine.\n"),
        ("Mine.\n" + BEGIN + "\nits end was deleted", "Mine.\nits end was deleted\n\n{}"),
    ],
)
def test_a_block_replaces_the_earlier_one(note: str, merged: str) -> None:
    block = f"{BEGIN}\n\nnew\n\n{END}\n"
    assert merge(note, "new\n") == merged.format(block)


def test_code_needs_more_ticks_than_it_holds() -> None:
    assert code("a``b") == "``` a``b ```"
    assert code("a\nb\x1b") == "` a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER} `"
    assert code("x" * 300, 10) == "` xxxxxxxxx\N{HORIZONTAL ELLIPSIS} `"
    assert code("") == "` - `"
    assert code_block(["a````b"]) == "`````\na````b\n`````"


def test_columns_without_a_title_hold_labels() -> None:
    gap = "\N{EM SPACE}"
    assert table(["", "best"], [["error", 0.5]], "---:").splitlines() == [
        f"|  | {gap}best |", "|---|---:|", f"| error | {gap}0.5 |",
    ]  # fmt: skip
