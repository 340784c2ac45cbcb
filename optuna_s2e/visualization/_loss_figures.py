"""Figures of losses: by generation, and by epoch within the trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import numpy as np
from optuna.trial import FrozenTrial

from optuna_s2e._attributes import Curves
from optuna_s2e.analysis import Recommendation, Snapshot
from optuna_s2e.visualization import _plotly as p

MAX_LOSSES = 600

# panels of the learning curves: name in the record -> title
PANELS = {
    "error": "validation error",
    "label_precision": "label precision of the selection",
    "train_accuracy": "training accuracy on the given labels",
}


def generations(snapshot: Snapshot) -> p.Figure:
    """Draw the losses of each generation, their mean, the best so far, the recommended trial.

    Raises:
        ValueError: If S2ESampler drew no trial of the study.
    """
    title = "Losses by generation"
    if not snapshot.is_s2e:
        raise ValueError(
            f"Study {snapshot.name!r} has no generations: S2ESampler drew none of its trials."
        )
    generation_of = snapshot.generation_of
    drawn = [t for t in snapshot.complete if t.number in generation_of]
    if not drawn:
        return p.empty_figure(title, "no trial is complete yet")
    traces = [_points(drawn, generation_of), *_mean_and_best(snapshot)]
    picked = snapshot.recommended
    if picked is not None and picked.trial is None:
        label = f"recommended: mean of {len(picked.mean_of)}"
        traces.append(_recommended_point(picked, label, snapshot.generations[-1].index))
    elif picked is not None and picked.trial in generation_of:
        label = f"recommended: #{picked.trial}"
        traces.append(_recommended_point(picked, label, generation_of[picked.trial]))
    layout = p.layout_of(title, "generation", p.text(snapshot.metric))
    layout["xaxis"] |= p.generation_ticks(len(snapshot.generations))
    return {"data": traces, "layout": layout}


def learning_curves(snapshot: Snapshot) -> p.Figure:
    """Draw the curves of the best and the recommended trial against all completed ones."""
    title = "Learning curves"
    recorded = snapshot.curves or snapshot.reports
    if not recorded:
        if snapshot.complete:
            return p.empty_figure(title, "the trials recorded no curves")
        return p.empty_figure(title, "no trial is complete yet")
    panels = _panels(snapshot, recorded)
    traces: list[p.Trace] = []
    layout = p.layout_of(title, "epoch", None)
    del layout["yaxis"]
    spans = p.domains([1.0] * len(panels), gap=0.1)
    layout["annotations"] = []
    for k, (name, label) in enumerate(panels.items(), start=1):
        traces += _curves_of_panel(snapshot, recorded, name, k)
        layout[p.axis_name("yaxis", k)] = {
            "domain": spans[k - 1], "title": {"text": None}, "gridcolor": p.GRID,
            "zeroline": False, "linecolor": p.GRID, "nticks": 4,
        }  # fmt: skip
        top = spans[k - 1][1]
        layout["annotations"].append(p.panel_title(label, 0, top, font={"size": 12}))
    layout["xaxis"]["anchor"] = p.axis_name("y", len(panels))
    return {"data": traces, "layout": layout}


def _points(drawn: list[FrozenTrial], generation_of: Mapping[int, int]) -> p.Trace:
    shown = [drawn[i] for i in p.thinned(len(drawn), MAX_LOSSES)]
    return {
        "x": [generation_of[t.number] for t in shown],
        "y": [p.short_number(t.value) for t in shown],
        "customdata": [t.number for t in shown],
        "hovertemplate": "trial %{customdata}: %{y}<extra></extra>",
        "mode": "markers",
        "marker": {"size": 7, "color": p.COLORS[0], "opacity": 0.55},
        "name": "trials",
    }


def _mean_and_best(snapshot: Snapshot) -> list[p.Trace]:
    values: dict[int, list[float]] = {}
    for trial in snapshot.complete:
        m = snapshot.generation_of.get(trial.number)
        if m is not None and trial.value is not None:
            values.setdefault(m, []).append(trial.value)
    indices = sorted(values)
    sign = -1.0 if snapshot.maximize else 1.0
    best = sign * np.minimum.accumulate([min(sign * v for v in values[m]) for m in indices])
    means = np.array([statistics.mean(values[m]) for m in indices])  # no sum overflows
    shown = p.thinned(len(indices), p.MAX_GENERATIONS)
    x = np.array(indices)[shown]
    so_far = p.line(x, best[shown], p.BEST, 2, "best so far", digits=None)
    so_far["line"]["shape"] = "hv"
    return [p.line(x, means[shown], p.COLORS[3], 2, "mean", digits=None), so_far]


def _recommended_point(picked: Recommendation, label: str, generation: int) -> p.Trace:
    low, high = picked.interval
    expected = picked.expected_loss
    above, below = (v if math.isfinite(v) else None for v in (high - expected, expected - low))
    return {
        "x": [generation],
        "y": [p.short_number(expected)],
        "error_y": {
            "array": [above and p.short_number(above)],
            "arrayminus": [below and p.short_number(below)],
            "color": p.RECOMMENDED,
        },
        "mode": "markers",
        "marker": {"size": 12, "symbol": "star", "color": p.RECOMMENDED},
        "name": f"{label}, expected (95 %)",
        "hovertemplate": "%{y}<extra></extra>",
    }


def _panels(snapshot: Snapshot, recorded: Mapping[int, Curves]) -> dict[str, str]:
    """Return name and title of the curves to draw; the metric of the study comes first."""
    names = {name for c in recorded.values() for name in c.values}
    wanted = dict(PANELS)
    if snapshot.metric == "validation_loss":
        del wanted["error"]
        wanted = {"loss": "validation loss", **wanted}
    panels = {name: label for name, label in wanted.items() if name in names}
    return panels or {name: p.text(name) for name in sorted(names)[:3]}


def _curves_of_panel(
    snapshot: Snapshot, recorded: Mapping[int, Curves], name: str, k: int
) -> list[p.Trace]:
    """Draw the band of all curves of one name, their median, and the highlighted trials."""
    curves = {n: c for n, c in recorded.items() if name in c.values}
    newest = curves[max(curves)].epochs
    same = [c.values[name] for c in curves.values() if np.array_equal(c.epochs, newest)]
    shown = p.thinned(len(newest), p.MAX_POINTS)
    t = newest[shown]
    halves = np.array(same)[:, shown] / 2  # whose differences do not overflow
    low, middle, high = 2 * np.quantile(halves, [0.1, 0.5, 0.9], axis=0)
    axis = {"yaxis": p.axis_name("y", k)}
    legend = {"showlegend": k == 1}
    group = {"legendgroup": "all"}
    median = p.line(t, middle, p.TEXT, 1.5, f"all {len(same)}: median, 80 %", digits=None)
    band = p.filled_band(t, low, high, p.FAINT, digits=None)
    traces = [band | group | axis, median | group | axis | legend]
    for label, trial, color, width, dash in p.highlights(snapshot):
        if trial.number in curves:
            own = curves[trial.number]
            some = p.thinned(len(own.epochs), p.MAX_POINTS)
            trace = p.line(
                own.epochs[some], own.values[name][some], color, min(width, 3), label,
                dash=dash, digits=None,
            )  # fmt: skip
            traces.append(trace | axis | legend | {"legendgroup": label})
    return traces
