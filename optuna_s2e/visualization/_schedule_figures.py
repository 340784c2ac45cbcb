"""Figures of schedules: those of a study, and what one schedule is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optuna_s2e._typing import FloatArray
from optuna_s2e.analysis import Snapshot
from optuna_s2e.distributions import decode, find_simplexes, simplex_params, weights_from_unit
from optuna_s2e.schedules import Schedule, ScheduleSpace, find_space
from optuna_s2e.visualization import _plotly as p

MAX_CURVES = 40  # schedules besides the best and the recommended one
_AXIS_TITLES = ("epoch t", "R(t), share of samples kept")


def schedules(snapshot: Snapshot) -> p.Figure:
    """Draw all R(t), later generations in stronger colours, and the mean of R(t) under p_theta.

    Raises:
        ValueError: If the study holds no schedules.
    """
    title = "Schedules R(t)"
    space = snapshot.schedule_space
    if space is None:
        raise ValueError(
            f"Study {snapshot.name!r} holds no schedules: an objective gets one from "
            "ScheduleSpace(n_epochs).suggest(trial)."
        )
    if not snapshot.schedules:
        return p.empty_figure(title, "no schedule is trained yet")
    n_points = min(space.n_epochs, p.MAX_POINTS)
    t = np.linspace(0.0, space.n_epochs - 1.0, n_points)
    traces = _trial_lines(snapshot, t)
    band = snapshot.keep_rate_band(n_points)
    if band is not None:
        group = {"legendgroup": "p"}
        traces.append(p.filled_band(t, band.low, band.high, p.FAINT) | group)
        name = "p<sub>θ</sub>: mean, 90 %"
        traces.append(p.line(t, band.mean, p.TEXT, 2, name, dash="dash") | group)
    for label, trial, color, width, dash in p.highlights(snapshot):
        if trial.number in snapshot.schedules:
            rates = _rates_at(snapshot.schedules[trial.number], t)
            traces.append(p.line(t, rates, color, width, label, dash=dash))
    picked = snapshot.recommended
    mean = picked.schedule if picked is not None and picked.mean_of else None
    if picked is not None and mean is not None and mean.n_epochs == space.n_epochs:
        label = f"recommended: mean of {len(picked.mean_of)}"
        traces.append(p.line(t, _rates_at(mean, t), p.RECOMMENDED, 3.5, label, dash="dot"))
    layout = p.layout_of(title, *_AXIS_TITLES)
    layout["yaxis"]["range"] = [0, 1.03]
    return {"data": traces, "layout": layout}


def basis_functions(schedule: Schedule, label: str = "R(t)") -> p.Figure:
    """Draw the parts of a schedule: its bases, or what each of its parameters does.

    If the space has a simplex, basis i is the schedule with all weight on i, clipped to (0, 1]
    like R(t). Otherwise each panel moves one parameter over its range and holds the others.

    Raises:
        ValueError: If the schedule comes from an array and so has no parameters.
    """
    if schedule.params is None:
        raise ValueError(
            "schedule must come from a ScheduleSpace, but it comes from an array: it has no parts."
        )
    space = find_space(schedule.params)
    params = {n: float(v) for n, v in schedule.params.items() if n not in space.tags}
    n_points = min(space.n_epochs, 2 * p.MAX_POINTS)
    t = np.linspace(0.0, space.n_epochs - 1.0, n_points)
    searched = {n: d for n, d in space.distributions.items() if not d.single()}
    groups = find_simplexes(searched)
    layout = p.layout_of("Basis functions", *_AXIS_TITLES)
    layout["yaxis"]["range"] = [0, 1.03]
    layout["margin"]["t"] = 90
    if groups:
        traces = _basis_lines(space, params, groups[0], t)
    else:
        layout["title"]["text"] = "What each parameter does"
        traces = _parameter_sweeps(space, params, t)
        _tile(layout, list(params))
    whole = p.line(t, _rates_at(schedule, t), p.BEST, 4, p.text(label))
    n_panels = 1 if groups else len(params)
    for k in range(1, n_panels + 1):
        traces.append(whole | _axes(k) | {"showlegend": k == 1})
    return {"data": traces, "layout": layout}


def _trial_lines(snapshot: Snapshot, t: FloatArray) -> list[p.Trace]:
    """Draw one thin line per schedule, coloured by its generation, or else by its age."""
    numbers = sorted(snapshot.schedules)
    numbers = [numbers[i] for i in p.thinned(len(numbers), MAX_CURVES)]
    ages = snapshot.generation_of if snapshot.is_s2e else {n: n for n in numbers}
    what = "gen." if snapshot.is_s2e else "trials"
    newest = max([ages.get(n, 0) for n in numbers], default=0)
    n_colors = len(p.EARLY_TO_LATE)
    bins = np.linspace(0, newest + 1, min(n_colors, newest + 1) + 1).astype(int)
    traces: list[p.Trace] = []
    for number in sorted(numbers, key=lambda n: ages.get(n, 0)):
        age = ages.get(number, 0)
        k = int(np.searchsorted(bins, age, side="right")) - 1
        low, high = bins[k], bins[k + 1] - 1
        name = f"{what} {low}" if low == high else f"{what} {low}–{high}"
        color = p.EARLY_TO_LATE[n_colors - len(bins) + 1 + k]
        value = p.short_text(snapshot.trials[number].value)
        generation = f", generation {age}" if snapshot.is_s2e and number in ages else ""
        trace = p.line([], _rates_at(snapshot.schedules[number], t), color, 1.2, name)
        del trace["x"]
        trace |= {
            "x0": 0,  # evenly spaced: shorter than x
            "dx": round(float(t[1]), 4),
            "opacity": 0.75,
            "legendgroup": f"{k}",
            "showlegend": all(other["name"] != name for other in traces),
            "hovertemplate": f"trial {number}{generation}: {value}<extra></extra>",
        }
        traces.append(trace)
    return traces


def _basis_lines(
    space: ScheduleSpace, params: Mapping[str, float], group: Sequence[str], t: npt.ArrayLike
) -> list[p.Trace]:
    k = len(group) + 1
    name = group[0].partition(".simplex")[0]
    weights = weights_from_unit(np.array([params[n] for n in group]))
    corners = [{**params, **simplex_params(name, np.eye(k)[i])} for i in range(k)]
    columns = {n: [corner[n] for corner in corners] for n in params}
    curves = space.curves(columns, np.size(t))
    labels = [f"f<sub>{i}</sub>, weight {w:.2f}" for i, w in enumerate(weights, start=1)]
    return [
        p.line(t, curves[i], p.COLORS[i % len(p.COLORS)], 1.5, labels[i])
        for i in range(len(weights))
    ]


def _parameter_sweeps(
    space: ScheduleSpace, params: Mapping[str, float], t: npt.ArrayLike
) -> list[p.Trace]:
    traces = []
    for k, name in enumerate(params, start=1):
        distribution = space.distributions[name]
        values = [decode(u, distribution) for u in (0.02, 0.25, 0.5, 0.75, 0.98)]
        columns = {n: [v] * len(values) for n, v in params.items()} | {name: values}
        curves = space.curves(columns, np.size(t))
        for value, color, rates in zip(values, p.EARLY_TO_LATE, curves, strict=True):
            hover = f"{p.text(name)} = {p.short_text(value)}: %{{y}}<extra></extra>"
            trace = p.line(t, rates, color, 1.5, "") | _axes(k)
            del trace["name"]
            traces.append(trace | {"showlegend": False, "hovertemplate": hover})
    return traces


def _tile(layout: dict[str, Any], names: Sequence[str]) -> None:
    """Lay one panel per parameter out side by side, in rows of up to four."""
    columns = min(4, len(names))
    n_rows = -(-len(names) // columns)
    rows = p.domains([1.0] * n_rows, gap=0.16)
    across = p.domains([1.0] * columns, gap=0.05)[::-1]
    x, y = layout.pop("xaxis"), layout.pop("yaxis")
    layout["annotations"] = []
    for k, name in enumerate(names, start=1):
        row, column = divmod(k - 1, columns)
        left = {} if column == 0 else {"showticklabels": False, "title": None}
        below = {} if row == n_rows - 1 else {"title": None}
        x_place = {"domain": across[column], "anchor": p.axis_name("y", k)}
        y_place = {"domain": rows[row], "anchor": p.axis_name("x", k)}
        layout[p.axis_name("xaxis", k)] = x | below | x_place
        layout[p.axis_name("yaxis", k)] = y | left | y_place
        title = f"{p.text(name)}, low to high"
        layout["annotations"].append(p.panel_title(title, across[column][0], rows[row][1]))


def _axes(k: int) -> dict[str, str]:
    return {"xaxis": p.axis_name("x", k), "yaxis": p.axis_name("y", k)}


def _rates_at(schedule: Schedule, t: FloatArray) -> FloatArray:
    return np.interp(t, np.arange(schedule.n_epochs), schedule.keep_rates)
