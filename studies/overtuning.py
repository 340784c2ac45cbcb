"""How often does a search make things worse? The pick beside schedules that need no search.

Question:  how often is the schedule that is picked worse on the test part than the suggested
           schedule (the first trial where the noise rate is known), than the trial that a search
           began with, and than Co-teaching told the true rate; and how often beyond noise?
Tasks:     all searches that other studies recorded: search_algorithms.py (real trainings; each
           pick is the mean of 8 fresh ones), twelve_trainings.py and picks.py (simulated on the
           tables of landscapes.py). Nothing is trained.
Noise:     a pick is worse beyond noise if it is by more than 1.96 standard errors of the
           difference. Real trainings: from the spread of the 8 fresh ones of each pick. Tables:
           from what their regression of the test error leaves open. By chance alone that happens
           in 2.5 % of the searches where nothing differs.
Run:       python studies/overtuning.py                (seconds; --smoke: two searches per cell)
Read:      studies/results/overtuning.json, --report
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import landscapes
import numpy as np
import picks
import runs
import search_algorithms
import twelve_trainings
from scipy import stats

from optuna_s2e.coteaching import fixed_schedules

RESULTS = Path(__file__).parent / "results" / "overtuning.json"
SUGGESTED, FIRST, TOLD = "suggested", "first trial", "Co-teaching, told the rate"
BEYOND = 1.96  # standard errors
SMOKE = 2
TRIED = (  # of studies/picks.py, to make fewer searches end worse than they began
    "middle (no search)", *picks.SOFTER, "h=.2, 15 % the middle", "h=.2, middle like 3 trials",
    "h=.3, middle by what is unexplained", picks.AHEAD, "mean, h=.3, towards the middle by s",
)  # fmt: skip


class Compared(NamedTuple):
    """The pick of one search beside one schedule that needs no search.

    Attributes:
        cell: Source, space, searcher, budget, rule and the other schedule.
        task: The task.
        worse: Test error of the pick minus that of the other one, points.
        error: Standard error of that difference.
    """

    cell: tuple[str, ...]
    task: str
    worse: float
    error: float


def of_trainings(results: runs.Results) -> Iterator[Compared]:
    """Compare the picks of studies/search_algorithms.py."""
    spreads = defaultdict(list)  # variances of one training, by task
    for key, row in results.items():
        if "validation" in row:
            spreads[key.split("|")[0]].append(np.var(row["validation"], ddof=1))
    few = search_algorithms.FEW_TRAININGS
    for key, row in results.items():
        task, searcher, seed = key.split("|")
        told = results.get(f"{task}|random|{seed}")
        searched = results.get(f"{task}|{few}|{seed}")
        others = {
            TOLD: told and told["test_error"]["coteaching"],
            SUGGESTED: searched and searched["test_error"]["suggested"],
        }
        if not spreads[task]:
            continue
        error = 100 * float(np.sqrt(2 * np.mean(spreads[task]) / search_algorithms.N_REPEATS))
        space = "Table 1" if searcher.endswith("Table 1") else "whole"
        where = ("informed", "S2E", "12") if searcher == few else (
            space, searcher.removesuffix(", Table 1"), "60"
        )  # fmt: skip
        for rule in ("mean", "smoothed", "best"):
            for name, other in others.items():
                if rule in row["test_error"] and other is not None:
                    worse = 100 * (row["test_error"][rule] - other)
                    yield Compared(("trainings", *where, rule, name), task, worse, error)


class Fixed(NamedTuple):
    """What a table says of a schedule that needs no search.

    Attributes:
        told: Regret of Co-teaching told the true rate.
        error: Standard error of the difference of two schedules, points.
    """

    told: float
    error: float


def of_table(name: str) -> Fixed:
    """Return the regret of Co-teaching on a table, and what is open about a difference."""
    table = landscapes.lookup(name)
    rates = fixed_schedules(table.task.n_epochs, table.noise_rate)["coteaching"].keep_rates
    open_variance = float(np.mean(table.deviations**2))
    return Fixed(float(table.regret(rates)[0]), 100 * float(np.sqrt(2 * open_variance)))


def of_lookups(results: runs.Results) -> Iterator[Compared]:
    """Compare the picks of studies/twelve_trainings.py; the first trial is the pick of one."""
    tables = {name: of_table(name) for name in {key.split("|")[0] for key in results}}
    for key, row in results.items():
        task, searcher, space, _ = key.split("|")
        name = SUGGESTED if space == "informed" else FIRST
        for b, budget in enumerate(twelve_trainings.BUDGETS[1:], start=1):
            for rule in twelve_trainings.RULES:
                cell = ("tables", space, searcher, str(budget), rule)
                regret, table = row[rule][b], tables[task]
                yield Compared((*cell, name), task, regret - row["best"][0], table.error)
                yield Compared((*cell, TOLD), task, regret - table.told, table.error)


def of_picks(results: runs.Results) -> Iterator[Compared]:
    """Compare the picks of studies/picks.py, and what is not in `recommend` but was tried there.

    The three rules of `recommend` on the tables of the part "report" come from `of_lookups`.
    """
    for key, row in results.items():
        task = key.split("|")[0]
        part, table = landscapes.TASKS[task].part, of_table(task)
        rules = {idea: idea for idea in TRIED if idea in row}
        if part == "tune":
            rules |= {"mean": picks.DEFAULT, "smoothed": "smoothed", "best": "best"}
        for b, budget in enumerate(picks.BUDGETS):
            for rule, idea in rules.items():
                cell = (f"tables, {part}", "informed", "S2E", str(budget), rule)
                middle = row["middle (no search)"][b]
                yield Compared((*cell, SUGGESTED), task, row[idea][b] - middle, table.error)
                yield Compared((*cell, TOLD), task, row[idea][b] - table.told, table.error)


def summarise(compared: list[Compared]) -> dict[str, dict[str, float]]:
    """Return for each cell how many picks are worse, in %, and by how many points on average.

    Tasks weigh by their number of searches: the share is one of searches.
    """
    cells: dict[tuple[str, ...], list[Compared]] = defaultdict(list)
    for one in compared:
        cells[one.cell].append(one)
    summary = {}
    for cell, rows in cells.items():
        beyond = stats.binomtest(sum(r.worse > BEYOND * r.error for r in rows), len(rows))
        interval = beyond.proportion_ci()
        summary["|".join(cell)] = {
            "searches": len(rows),
            "tasks": len({r.task for r in rows}),
            "worse": round(100 * float(np.mean([r.worse > 0 for r in rows])), 1),
            "beyond": round(100 * float(beyond.statistic), 1),
            "beyond_low": round(100 * float(interval.low), 1),
            "beyond_high": round(100 * float(interval.high), 1),
            "mean": round(float(np.mean([r.worse for r in rows])), 2),
            "error": round(float(np.mean([r.error for r in rows])), 2),
        }
    return summary


def collect(first: int | None = None) -> dict[str, dict[str, float]]:
    """Compare all recorded searches, or the `first` ones of each cell."""
    compared: list[Compared] = []
    for path, compare in (
        (search_algorithms.RESULTS, of_trainings),
        (twelve_trainings.RESULTS, of_lookups),
        (picks.RESULTS, of_picks),
    ):
        results = runs.read(path)["results"]
        chosen = {
            k: row for k, row in results.items()
            if first is None or int(k.rsplit("|", 1)[1]) < first
        }  # fmt: skip
        compared += compare(chosen)
    return summarise(compared)


def report(cells: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    print("| searches | ranges | searcher | trainings | pick | than | worse, % | beyond noise, % |"
          " difference | number |\n|---|---|---|---:|---|---|---:|---:|---:|---:|")  # fmt: skip
    for cell, found in cells.items():
        values = (
            f"{found['worse']:.0f}",
            f"**{found['beyond']:.1f}** [{found['beyond_low']:.1f}, {found['beyond_high']:.1f}]",
            f"{found['mean']:+.2f}",
            f"{found['searches']:.0f}",
        )  # fmt: skip
        print("| " + " | ".join([*cell.split("|"), *values]) + " |")


def main() -> None:
    """Compare, save, report."""
    parser = runs.parser(__doc__, seeds=0)
    parser.add_argument("--smoke", action="store_true", help="everything in small; keeps nothing")
    options = parser.parse_args()
    if options.report:
        cells = runs.read(RESULTS)["results"]
    else:
        cells = collect(SMOKE if options.smoke else None)
        if not options.smoke:
            RESULTS.write_text(json.dumps({"results": cells}, indent=1) + "\n")
    report(cells)


if __name__ == "__main__":
    main()
