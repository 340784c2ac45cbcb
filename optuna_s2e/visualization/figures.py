"""The figures as plain dictionaries, Plotly's JSON: a pure function of a story each.

Without plotly.py they can be drawn too, and without its 7 kB template. Backgrounds are transparent
and colours of medium lightness: legible on white and on black. Numbers are rounded and curves
thinned, so that a figure stays below about 25 kB however long the search was.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

from optuna_s2e._attributes import Curves
from optuna_s2e._typing import FloatArray
from optuna_s2e.analysis import Marginal, Shares, Story
from optuna_s2e.distributions import decode, find_simplexes, simplex_params, weights_from_unit
from optuna_s2e.schedules import Schedule, ScheduleSpace, find_space

Figure = dict[str, Any]
Trace = dict[str, Any]

TEXT, GRID, FAINT = "#7c8594", "rgba(128,136,150,0.22)", "rgba(128,136,150,0.25)"
BEST, RECOMMENDED = "#ef8a2c", "#22a06b"
EARLY_TO_LATE = ("#94a7c4", "#6f9fe0", "#4f7df0", "#7d5fe6", "#b04fc8")
HUES = ("#4f86f7", "#ef8a2c", "#22a06b", "#b04fc8", "#d8504d", "#17a2b8", "#a0803c", "#7c8594")

MAX_POINTS = 40  # of one curve
MAX_CURVES = 40  # schedules besides the best ones
MAX_GENERATIONS = 60  # points along the generations
MAX_LOSSES = 600
MAX_ROWS = 16  # numbers of theta
MAX_AREAS = 2  # simplexes and categories of theta
MAX_LABEL = 40
MAX_SHARES = 12

# panels of the learning curves: name in the record -> title
PANELS = {
    "error": "validation error",
    "label_precision": "label precision of the selection",
    "train_accuracy": "training accuracy on the given labels",
}


def text(value: object) -> str:
    """Return a string of a study as inert text of limited length: Plotly reads HTML tags."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    if len(shown) > MAX_LABEL:
        shown = shown[: MAX_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return html.escape(shown, quote=False)


# --- the four figures of a study -------------------------------------------------------------


def schedules(story: Story) -> Figure:
    """All R(t), later generations in stronger colours; the best, the recommended, theta's mean."""
    title = "Schedules R(t)"
    space = story.schedule_space
    if space is None:
        raise ValueError(
            f"Study {story.name!r} holds no schedules: an objective gets one from "
            "ScheduleSpace(n_epochs).suggest(trial)."
        )
    if not story.schedules:
        return _empty(title, "no schedule is trained yet")
    n_points = min(space.n_epochs, MAX_POINTS)
    t = np.linspace(0.0, space.n_epochs - 1.0, n_points)
    traces = _crowd(story, t)
    band = story.band(n_points)
    if band is not None:
        name = "p<sub>θ</sub>: mean, 90 %"
        x = _round([*t, *t[::-1]], 2)
        area = {"x": x, "y": _round([*band.high, *band.low[::-1]], 3), "fill": "toself"}
        invisible = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        traces.append(
            area | invisible | {"fillcolor": FAINT, "legendgroup": "p", "showlegend": False}
        )
        traces.append(_line(t, band.mean, TEXT, 2, name, dash="dash") | {"legendgroup": "p"})
    for name, trial, line in _chosen(story):
        if trial.number in story.schedules:
            rates = _at(story.schedules[trial.number], t)
            traces.append(_line(t, rates, line["color"], line["width"], name, line.get("dash")))
    layout = _layout(title, "epoch t", "R(t), share of samples kept")
    layout["yaxis"]["range"] = [0, 1.03]
    return {"data": traces, "layout": layout}


def theta(story: Story) -> Figure:
    """p_theta by generation: expected weights as stacked areas, numbers as mean and spread."""
    title = "Search distribution p<sub>θ</sub>"
    if not story.is_s2e:
        raise ValueError(f"Study {story.name!r} has no theta: S2ESampler drew none of its trials.")
    shares, marginals = story.blocks
    if story.space is None:
        return _empty(title, "uniform (θ = 1) until the first generation is complete")
    shown = shares[:MAX_AREAS]
    rows = _most_moved(marginals, MAX_ROWS)
    n_columns = 1 + (len(rows) > MAX_ROWS // 2)
    per_column = -(-len(rows) // n_columns)
    columns = [rows[i : i + per_column] for i in range(0, len(rows), per_column or 1)]
    left_out = len(shares) - len(shown) + len(marginals) - len(rows)
    layout = _layout(title, "generation", None)
    x, y = layout.pop("xaxis"), layout.pop("yaxis")
    x |= {"dtick": max(1, -(-len(story.generations) // 12)), "tick0": 0}
    heights = [1.0] * len(shown) + [max(1.0, per_column / 4)] * bool(rows)
    spans = _spans(heights)
    traces: list[Trace] = []
    at = _thinned(len(story.generations), MAX_GENERATIONS // n_columns)
    for k, area in enumerate(shown, start=1):
        traces += _areas(area, at, k)
        own = {"anchor": _axis("y", k)}
        quiet = {"showticklabels": False, "title": None, "matches": "x"} if rows else {}
        layout[_axis("xaxis", k)] = x | own | (quiet if k > 1 or rows else {})
        layout[_axis("yaxis", k)] = y | {
            "domain": spans[k - 1], "range": [0, 1], "title": {"text": text(area.name)}
        }  # fmt: skip
    if "xaxis" in layout:
        layout["xaxis"].pop("matches", None)
    across = [[0.0, 1.0]] if n_columns == 1 else [[0.0, 0.39], [0.61, 1.0]]
    for c, column in enumerate(columns):
        k = len(shown) + 1 + c
        ticks = []
        for i, row in enumerate(column):
            values = [decode(m, story.space.distributions[row.name]) for m in row.mean[at]]
            traces += _row(row, at, per_column - 1 - i, k, values)
            ticks.append(f"{text(row.name)}  {_short(values[-1])}")
        layout[_axis("xaxis", k)] = x | {"domain": across[c], "anchor": _axis("y", k)}
        layout[_axis("yaxis", k)] = y | {
            "domain": spans[-1],
            "anchor": _axis("x", k),
            "range": [0, per_column],
            # the lines between the rows are minor ticks, the labels stand in the middle
            "tickvals": [per_column - 0.5 - i for i in range(len(column))],
            "ticktext": ticks,
            "showgrid": False,
            "minor": {"tick0": 0, "dtick": 1, "showgrid": True, "gridcolor": GRID},
        }
    if left_out:
        layout["title"]["text"] += f" <i>({left_out} parameters that moved least not shown)</i>"
    if rows:
        subtitle = "rows: the range of a parameter, its mean ± standard deviation, newest mean"
        layout["title"]["subtitle"] = {"text": subtitle}
    return {"data": traces, "layout": layout}


def generations(story: Story) -> Figure:
    """The losses of each generation, their mean, the best so far and the recommended trial."""
    title = "Losses by generation"
    if not story.is_s2e:
        raise ValueError(
            f"Study {story.name!r} has no generations: S2ESampler drew none of its trials."
        )
    generation_of = story.generation_of
    drawn = [t for t in story.complete if t.number in generation_of]
    if not drawn:
        return _empty(title, "no trial is complete yet")
    points = [drawn[i] for i in _thinned(len(drawn), MAX_LOSSES)]
    traces: list[Trace] = [
        {
            "x": [generation_of[t.number] for t in points],
            "y": [_short_number(t.value) for t in points],
            "customdata": [t.number for t in points],
            "hovertemplate": "trial %{customdata}: %{y}<extra></extra>",
            "mode": "markers",
            "marker": {"size": 7, "color": HUES[0], "opacity": 0.55},
            "name": "trials",
        }
    ]
    indices = sorted({generation_of[t.number] for t in drawn})
    values = {m: [t.value for t in drawn if generation_of[t.number] == m] for m in indices}
    better = max if story.maximize else min
    best_so_far, means, best = [], [], None
    for m in indices:
        own = [v for v in values[m] if v is not None]
        best = better([*own, best]) if best is not None else better(own)
        best_so_far.append(best)
        means.append(float(np.mean(own)))
    kept = _thinned(len(indices), MAX_GENERATIONS)
    at = [indices[i] for i in kept]
    traces.append(_line(at, [means[i] for i in kept], HUES[3], 2, "mean", digits=5))
    line = _line(at, [best_so_far[i] for i in kept], BEST, 2, "best so far", digits=5)
    line["line"]["shape"] = "hv"
    traces.append(line)
    picked = story.recommended
    if picked is not None and picked.trial in generation_of:
        low, high = picked.interval
        expected = picked.expected_loss
        traces.append({
            "x": [generation_of[picked.trial]],
            "y": [_short_number(expected)],
            "error_y": {
                "array": [_short_number(high - expected)],
                "arrayminus": [_short_number(expected - low)],
                "color": RECOMMENDED,
            },
            "mode": "markers",
            "marker": {"size": 12, "symbol": "star", "color": RECOMMENDED},
            "name": f"recommended: #{picked.trial}, expected (95 %)",
            "hovertemplate": "%{y}<extra></extra>",
        })  # fmt: skip
    layout = _layout(title, "generation", text(story.metric))
    layout["xaxis"] |= {"dtick": max(1, -(-len(story.generations) // 12)), "tick0": 0}
    return {"data": traces, "layout": layout}


def learning_curves(story: Story) -> Figure:
    """The curves of the best and the recommended trial against all completed ones, by epoch."""
    title = "Learning curves"
    recorded = story.curves or story.reports
    if not recorded:
        if story.complete:
            return _empty(title, "the trials recorded no curves")
        return _empty(title, "no trial is complete yet")
    panels = _panels(story, recorded)
    traces: list[Trace] = []
    layout = _layout(title, "epoch", None)
    del layout["yaxis"]
    spans = _spans([1.0] * len(panels), gap=0.1)
    layout["annotations"] = []
    for k, (name, label) in enumerate(panels.items(), start=1):
        traces += _against_all(story, recorded, name, k)
        layout[_axis("yaxis", k)] = _y(spans[k - 1], None) | {"nticks": 4}
        layout["annotations"].append({
            "text": label, "xref": "paper", "yref": "paper", "x": 0, "y": spans[k - 1][1],
            "xanchor": "left", "yanchor": "bottom", "showarrow": False, "font": {"size": 12},
        })  # fmt: skip
    layout["xaxis"]["anchor"] = _axis("y", len(panels))
    return {"data": traces, "layout": layout}


# --- what a schedule is made of --------------------------------------------------------------


def basis_functions(schedule: Schedule, label: str = "R(t)") -> Figure:
    """The parts of a schedule: its bases, or what each of its parameters does.

    Where the space has a simplex, basis i is the schedule with all weight on i, clipped to (0, 1]
    like R(t). Elsewhere each panel moves one parameter over its range and holds the others.
    """
    if schedule.params is None:
        raise ValueError(
            "schedule must come from a ScheduleSpace, but it comes from an array: it has no parts."
        )
    space = find_space(schedule.params)
    params = {n: float(v) for n, v in schedule.params.items() if n not in space.tags}
    n_points = min(space.n_epochs, 2 * MAX_POINTS)
    t = np.linspace(0.0, space.n_epochs - 1.0, n_points)
    searched = {n: d for n, d in space.distributions.items() if not d.single()}
    groups = find_simplexes(searched)
    layout = _layout("Basis functions", "epoch t", "R(t), share of samples kept")
    layout["yaxis"]["range"] = [0, 1.03]
    layout["margin"]["t"] = 90
    if groups:
        traces = _bases(space, params, groups[0], t)
    else:
        layout["title"]["text"] = "What each parameter does"
        traces = _sweeps(space, params, t)
        _tile(layout, traces, list(params))
        for trace in traces:
            trace.pop("name", None)
    whole = _line(t, _at(schedule, t), BEST, 4, text(label))
    n_panels = 1 if groups else len(params)
    for k in range(1, n_panels + 1):
        own = {"xaxis": _axis("x", k), "yaxis": _axis("y", k), "showlegend": k == 1}
        traces.append(whole | own)
    return {"data": traces, "layout": layout}


def _bases(
    space: ScheduleSpace, params: Mapping[str, float], group: Sequence[str], t: npt.ArrayLike
) -> list[Trace]:
    k = len(group) + 1
    name = group[0].partition(".simplex")[0]
    weights = weights_from_unit(np.array([params[n] for n in group]))
    corners = [{**params, **simplex_params(name, np.eye(k)[i])} for i in range(k)]
    columns = {n: [p[n] for p in corners] for n in params}
    curves = space.curves(columns, np.size(t))
    return [
        _line(t, curves[i], HUES[i % len(HUES)], 1.5, f"f<sub>{i + 1}</sub>, weight {w:.2f}")
        for i, w in enumerate(weights)
    ]


def _sweeps(space: ScheduleSpace, params: Mapping[str, float], t: npt.ArrayLike) -> list[Trace]:
    traces = []
    for k, name in enumerate(params, start=1):
        distribution = space.distributions[name]
        values = [decode(u, distribution) for u in (0.02, 0.25, 0.5, 0.75, 0.98)]
        columns = {n: [v] * len(values) for n, v in params.items()} | {name: values}
        for value, color, rates in zip(
            values, EARLY_TO_LATE, space.curves(columns, np.size(t)), strict=True
        ):
            hover = f"{text(name)} = {_short(value)}: %{{y}}<extra></extra>"
            axes = {"xaxis": _axis("x", k), "yaxis": _axis("y", k), "showlegend": False}
            traces.append(_line(t, rates, color, 1.5, "") | axes | {"hovertemplate": hover})
    return traces


def _tile(layout: dict[str, Any], traces: Sequence[Trace], names: Sequence[str]) -> None:
    """Lay panels out side by side, in rows of up to four."""
    columns = min(4, len(names))
    n_rows = -(-len(names) // columns)
    rows, across = _spans([1.0] * n_rows, gap=0.16), _spans([1.0] * columns, gap=0.05)[::-1]
    x, y = layout.pop("xaxis"), layout.pop("yaxis")
    layout["annotations"] = []
    for k, name in enumerate(names):
        row, column = divmod(k, columns)
        left = {} if column == 0 else {"showticklabels": False, "title": None}
        below = {} if row == n_rows - 1 else {"title": None}
        layout[_axis("xaxis", k + 1)] = x | below | {
            "domain": across[column], "anchor": _axis("y", k + 1)
        }  # fmt: skip
        layout[_axis("yaxis", k + 1)] = y | left | {
            "domain": rows[row], "anchor": _axis("x", k + 1)
        }  # fmt: skip
        layout["annotations"].append({
            "text": f"{text(name)}, low to high", "xref": "paper", "yref": "paper",
            "x": across[column][0], "y": rows[row][1], "xanchor": "left", "yanchor": "bottom",
            "showarrow": False,
        })  # fmt: skip


# --- parts of the figures ----------------------------------------------------------------------


def _crowd(story: Story, t: FloatArray) -> list[Trace]:
    """Draw one thin line per schedule, coloured by its generation (else by its age)."""
    numbers = sorted(story.schedules)
    numbers = [numbers[i] for i in _thinned(len(numbers), MAX_CURVES)]
    ages = story.generation_of if story.is_s2e else {n: n for n in numbers}
    what = "gen." if story.is_s2e else "trials"
    newest = max([ages.get(n, 0) for n in numbers], default=0)
    bins = np.linspace(0, newest + 1, min(len(EARLY_TO_LATE), newest + 1) + 1).astype(int)
    traces: list[Trace] = []
    for number in sorted(numbers, key=lambda n: ages.get(n, 0)):
        age = ages.get(number, 0)
        k = int(np.searchsorted(bins, age, side="right")) - 1
        low, high = bins[k], bins[k + 1] - 1
        name = f"{what} {low}" if low == high else f"{what} {low}–{high}"
        color = EARLY_TO_LATE[len(EARLY_TO_LATE) - len(bins) + 1 + k]
        value = story.trials[number].value
        generation = f", generation {age}" if story.is_s2e and number in ages else ""
        trace = _line([], _at(story.schedules[number], t), color, 1.2, name)
        del trace["x"]
        trace |= {
            "x0": 0,  # evenly spaced: shorter than x
            "dx": round(float(t[1]), 4),
            "opacity": 0.75,
            "legendgroup": f"{k}",
            "showlegend": all(own["name"] != name for own in traces),
            "hovertemplate": f"trial {number}{generation}: {_short(value)}<extra></extra>",
        }
        traces.append(trace)
    return traces


def _chosen(story: Story) -> Iterable[tuple[str, FrozenTrial, dict[str, Any]]]:
    """Yield name, trial and line of the recommended and of the best trial."""
    best = story.best
    picked = story.recommended.trial if story.recommended is not None else None
    if picked is not None and best is not None and picked != best.number:
        line = {"color": RECOMMENDED, "width": 3.5, "dash": "dot"}
        yield f"recommended: #{picked}", story.trials[picked], line
    if best is not None:
        what = "best and recommended" if picked == best.number else "best"
        yield f"{what}: #{best.number}", best, {"color": BEST, "width": 4}


def _areas(area: Shares, x: npt.NDArray[np.int64], k: int) -> list[Trace]:
    hues = HUES[(k - 1) * 4 :] + HUES[: (k - 1) * 4]
    return [
        {
            "x": x.tolist(),
            "y": _round(area.means[x, i], 4),
            "xaxis": _axis("x", k),
            "yaxis": _axis("y", k),
            "stackgroup": f"{k}",
            "mode": "lines",
            "line": {"width": 0.5, "color": hues[i % len(hues)]},
            "name": text(label),
            "hovertemplate": f"{text(label)}: %{{y}}<extra></extra>",
        }
        for i, label in enumerate(area.labels)
    ][:MAX_SHARES]


def _row(
    row: Marginal, x: npt.NDArray[np.int64], base: int, k: int, values: Sequence[Any]
) -> list[Trace]:
    """Draw one parameter in its row: its whole range is 0.8 high."""
    mean, deviation = row.mean[x], row.deviation[x]
    low, high = np.clip(mean - deviation, 0, 1), np.clip(mean + deviation, 0, 1)
    color = HUES[0]
    axes = {"xaxis": _axis("x", k), "yaxis": _axis("y", k), "showlegend": False}
    band = {
        "x": [*x.tolist(), *x.tolist()[::-1]],
        "y": _round([*(base + 0.1 + 0.8 * high), *(base + 0.1 + 0.8 * low)[::-1]], 3),
        "fill": "toself", "fillcolor": "rgba(79,134,247,0.35)", "mode": "lines",
        "line": {"width": 0}, "hoverinfo": "skip",
    }  # fmt: skip
    line = _line(x, base + 0.1 + 0.8 * mean, color, 1.5, "") | {
        "customdata": [_short(v) for v in values],
        "hovertemplate": f"{text(row.name)}: %{{customdata}}<extra></extra>",
    }
    return [band | axes, line | axes]


def _most_moved(marginals: Sequence[Marginal], n: int) -> list[Marginal]:
    """Return at most n marginals, those whose mean moved most, in their own order."""
    moved = sorted(marginals, key=lambda m: -float(np.ptp(m.mean)))[:n]
    return [m for m in marginals if any(m is other for other in moved)]


def _panels(story: Story, recorded: Mapping[int, Curves]) -> dict[str, str]:
    names = {name for c in recorded.values() for name in c.values}
    wanted = dict(PANELS)
    if story.metric == "validation_loss":
        wanted = {"loss": "validation loss", **{n: wanted[n] for n in list(wanted)[1:]}}
    panels = {name: label for name, label in wanted.items() if name in names}
    return panels or {name: text(name) for name in sorted(names)[:3]}


def _against_all(story: Story, recorded: Mapping[int, Curves], name: str, k: int) -> list[Trace]:
    """Draw the band of all curves of one name, their median, and the chosen trials."""
    curves = {n: c for n, c in recorded.items() if name in c.values}
    newest = curves[max(curves)].epochs
    same = [c.values[name] for c in curves.values() if np.array_equal(c.epochs, newest)]
    at = _thinned(len(newest), MAX_POINTS)
    t = newest[at]
    low, middle, high = np.quantile(np.array(same)[:, at], [0.1, 0.5, 0.9], axis=0)
    own = {"yaxis": _axis("y", k), "showlegend": k == 1}
    group = {"legendgroup": "all"}
    traces = [
        {
            "x": [*t.tolist(), *t.tolist()[::-1]],
            "y": _round([*high, *low[::-1]], 4),
            "fill": "toself", "fillcolor": FAINT, "mode": "lines", "line": {"width": 0},
            "hoverinfo": "skip",
        } | group | own | {"showlegend": False},
        _line(t, middle, TEXT, 1.5, f"all {len(same)}: median, 80 %") | group | own,
    ]  # fmt: skip
    for label, trial, line in _chosen(story):
        if trial.number in curves:
            mine = curves[trial.number]
            some = _thinned(len(mine.epochs), MAX_POINTS)
            values = mine.values[name][some]
            width = min(line["width"], 3)
            trace = _line(
                mine.epochs[some], values, line["color"], width, label, line.get("dash"), digits=4
            )
            traces.append(trace | own | {"legendgroup": label})
    return traces


# --- small things --------------------------------------------------------------------------------


def _layout(title: str, x: str, y: str | None) -> dict[str, Any]:
    clear = "rgba(0,0,0,0)"
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "automargin": True}
    return {
        "title": {"text": title, "x": 0.02, "y": 0.97, "yanchor": "top", "font": {"size": 16}},
        "font": {"color": TEXT, "size": 12},
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "modebar": {"bgcolor": clear, "color": TEXT},
        "margin": {"l": 60, "r": 20, "t": 70, "b": 110},
        # below: above, it would grow over the title
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": -0.18,
            "yanchor": "top",
            "bgcolor": clear,
            "font": {"size": 11},
        },
        "hovermode": "closest",
        "uirevision": "s2e",  # zoom and legend survive the dashboard's redraws
        "xaxis": {**axis, "title": {"text": x, "standoff": 5}},
        "yaxis": {**axis, "title": {"text": y}},
    }


def _empty(title: str, message: str) -> Figure:
    layout = _layout(title, "", None)
    layout["xaxis"] = layout["yaxis"] = {"visible": False}
    layout["annotations"] = [
        {"text": message, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5,
         "showarrow": False, "font": {"size": 14}}
    ]  # fmt: skip
    return {"data": [], "layout": layout}


def _line(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    color: str,
    width: float,
    name: str,
    dash: str | None = None,
    digits: int = 3,
) -> Trace:
    line: dict[str, Any] = {"color": color, "width": width}
    if dash is not None:
        line["dash"] = dash
    return {
        "x": _round(x, 2),
        "y": _round(y, digits),
        "mode": "lines",
        "line": line,
        "name": name,
        "hovertemplate": f"{name}: %{{y}}<extra></extra>",
    }


def _at(schedule: Schedule, t: FloatArray) -> FloatArray:
    return np.interp(t, np.arange(schedule.n_epochs), schedule.keep_rates)


def _axis(prefix: str, k: int) -> str:
    return prefix if k == 1 else f"{prefix}{k}"


def _y(domain: Sequence[float], title: str | None) -> dict[str, Any]:
    return {
        "domain": list(domain), "title": {"text": title}, "gridcolor": GRID, "zeroline": False,
        "linecolor": GRID,
    }  # fmt: skip


def _spans(heights: Sequence[float], gap: float = 0.08) -> list[list[float]]:
    """Return the domains in [0, 1] of panels of these heights, from the top down."""
    total = sum(heights)
    room = 1.0 - gap * (len(heights) - 1)
    spans, top = [], 1.0
    for height in heights:
        below = top - room * height / total
        spans.append([round(max(0.0, below), 4), round(top, 4)])
        top = below - gap
    return spans


def _thinned(n: int, at_most: int) -> npt.NDArray[np.int64]:
    """Return at most so many evenly spaced indices of n, the first and the last among them."""
    if n <= at_most:
        return np.arange(n)
    return np.unique(np.linspace(0, n - 1, at_most).round().astype(np.int64))


def _round(values: npt.ArrayLike, digits: int) -> list[float | int]:
    """Return plain numbers; whole ones as ints, which are shorter."""
    numbers = np.round(np.asarray(values, dtype=np.float64), digits).tolist()
    return [int(v) if v == int(v) else v for v in numbers]


def _short_number(value: float | None) -> float:
    return float(f"{value or 0.0:.5g}")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else text(value)
