"""Parts that all figures share: colours, limits, layout, lines, numbers.

Figures are plain dictionaries, Plotly's JSON. Backgrounds are transparent and colours of medium
lightness, so that a figure is legible on white and on black. Numbers are rounded and curves
thinned, so that a figure stays below about 25 kB however long the search was.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

from optuna_s2e.analysis import Snapshot

Figure = dict[str, Any]
Trace = dict[str, Any]

TEXT, GRID, FAINT = "#6f7786", "rgba(128,136,150,0.22)", "rgba(128,136,150,0.25)"
BEST, RECOMMENDED = "#ef8a2c", "#22a06b"
EARLY_TO_LATE = ("#94a7c4", "#6f9fe0", "#4f7df0", "#7d5fe6", "#b04fc8")
COLORS = ("#4f86f7", "#ef8a2c", "#22a06b", "#b04fc8", "#d8504d", "#17a2b8", "#a0803c", "#7c8594")

MAX_POINTS = 40  # points of one curve
MAX_GENERATIONS = 60  # points along the generations
MAX_LABEL = 40  # characters of a name of the study
LARGEST_INT = 1e15  # larger whole numbers are shorter as floats


class Highlight(NamedTuple):
    """A trial that stands out, with the label and the style of its line."""

    label: str
    trial: FrozenTrial
    color: str
    width: float
    dash: str | None


def highlights(snapshot: Snapshot) -> Iterator[Highlight]:
    """Yield the recommended and the best trial; one highlight if they are the same trial."""
    best = snapshot.best
    picked = snapshot.recommended.trial if snapshot.recommended is not None else None
    if picked is not None and best is not None and picked != best.number:
        trial = snapshot.trials[picked]
        yield Highlight(f"recommended: #{picked}", trial, RECOMMENDED, 3.5, "dot")
    if best is not None:
        what = "best and recommended" if picked == best.number else "best"
        yield Highlight(f"{what}: #{best.number}", best, BEST, 4, None)


def text(value: object, max_length: int = MAX_LABEL) -> str:
    """Return a string of a study as text that does nothing: Plotly interprets HTML tags."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    if len(shown) > max_length:
        shown = shown[: max_length - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return html.escape(shown, quote=False)


# --- layout ----------------------------------------------------------------------------------


def layout_of(title: str, x: str, y: str | None) -> dict[str, Any]:
    """Return the layout of a figure with these titles of the figure and its axes."""
    clear = "rgba(0,0,0,0)"
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "automargin": True}
    return {
        "title": {"text": title, "x": 0.02, "y": 0.97, "yanchor": "top", "font": {"size": 16}},
        "font": {"color": TEXT, "size": 12},
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "modebar": {"bgcolor": clear, "color": TEXT},
        "margin": {"l": 60, "r": 20, "t": 70, "b": 110},
        # below the figure: above it, the legend would grow over the title
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


def empty_figure(title: str, message: str) -> Figure:
    """Return a figure that only says why there is nothing to see."""
    layout = layout_of(title, "", None)
    layout["xaxis"] = layout["yaxis"] = {"visible": False}
    layout["annotations"] = [
        {"text": message, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5,
         "showarrow": False, "font": {"size": 14}}
    ]  # fmt: skip
    return {"data": [], "layout": layout}


def panel_title(label: str, left: float, top: float, **options: Any) -> dict[str, Any]:
    """Return the annotation that stands above a panel."""
    return {
        "text": label, "xref": "paper", "yref": "paper", "x": left, "y": top,
        "xanchor": "left", "yanchor": "bottom", "showarrow": False, **options,
    }  # fmt: skip


def axis_name(prefix: str, k: int) -> str:
    """Return Plotly's name of the k-th axis: "x", "x2", "yaxis", "yaxis2"."""
    return prefix if k == 1 else f"{prefix}{k}"


def domains(heights: Sequence[float], gap: float = 0.08) -> list[list[float]]:
    """Return the domains in [0, 1] of panels of these heights, from the top down."""
    total = sum(heights)
    room = 1.0 - gap * (len(heights) - 1)
    spans, top = [], 1.0
    for height in heights:
        below = top - room * height / total
        spans.append([round(max(0.0, below), 4), round(top, 4)])
        top = below - gap
    return spans


def generation_ticks(n_generations: int) -> dict[str, int]:
    """Return ticks at whole generations, about twelve of them."""
    return {"dtick": max(1, -(-n_generations // 12)), "tick0": 0}


# --- lines and numbers -----------------------------------------------------------------------


def line(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    color: str,
    width: float,
    name: str,
    *,
    dash: str | None = None,
    digits: int | None = 3,
) -> Trace:
    """Return a line whose values are rounded as by `rounded`."""
    style: dict[str, Any] = {"color": color, "width": width}
    if dash is not None:
        style["dash"] = dash
    return {
        "x": rounded(x, 2),
        "y": rounded(y, digits),
        "mode": "lines",
        "line": style,
        "name": name,
        "hovertemplate": f"{name}: %{{y}}<extra></extra>",
    }


def filled_band(
    x: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    color: str,
    *,
    digits: int | None = 3,
) -> Trace:
    """Return the area between two curves, without a border or a text at the mouse."""
    return {
        "x": rounded(_there_and_back(x, x), 2),
        "y": rounded(_there_and_back(high, low), digits),
        "fill": "toself",
        "fillcolor": color,
        "mode": "lines",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _there_and_back(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.concatenate([np.asarray(first), np.asarray(second)[::-1]]).astype(np.float64)


def thinned(n: int, at_most: int) -> npt.NDArray[np.int64]:
    """Return at most so many evenly spaced indices of n, the first and the last among them."""
    if n <= at_most:
        return np.arange(n)
    return np.unique(np.linspace(0, n - 1, at_most).round().astype(np.int64))


def rounded(values: npt.ArrayLike, digits: int | None) -> list[float | int]:
    """Return numbers with so many decimals, or with five significant digits if `digits` is None.

    Whole numbers become ints, which are shorter. Python's `round`, unlike NumPy's, does not
    overflow.
    """
    exact = np.asarray(values, dtype=np.float64).tolist()
    numbers = [short_number(v) if digits is None else round(v, digits) for v in exact]
    return [int(v) if v.is_integer() and abs(v) < LARGEST_INT else v for v in numbers]


def short_number(value: float | None) -> float:
    """Return a number with five significant digits, unless it is then too large for a float."""
    exact = float(value or 0.0)
    short = float(f"{exact:.5g}")
    return short if math.isfinite(short) else exact


def short_text(value: object) -> str:
    """Return a parameter's value as text; floats with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else text(value)
