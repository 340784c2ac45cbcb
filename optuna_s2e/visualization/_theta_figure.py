"""The figure of the search distribution: p_theta by generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optuna_s2e.analysis import Marginal, Proportions, Snapshot
from optuna_s2e.distributions import decode
from optuna_s2e.visualization import _plotly as p

MAX_ROWS = 16  # numbers of theta; fewer beside two areas
MAX_AREAS = 2  # simplexes and categories of theta
MAX_WEIGHTS = 12  # weights or choices of one of them
MAX_ROW_LABEL = 24  # characters of a parameter's name at its row
ROOMY = 6  # so few rows are high enough for a second line of text
_BAND = "rgba(79,134,247,0.35)"
_LOW, _HEIGHT = 0.1, 0.8  # of a parameter's range within its row


def theta(snapshot: Snapshot) -> p.Figure:
    """Draw p_theta by generation: expected weights as areas, numbers as mean and spread.

    Raises:
        ValueError: If S2ESampler drew no trial of the study.
    """
    title = "Search distribution p<sub>θ</sub>"
    if not snapshot.is_s2e:
        raise ValueError(
            f"Study {snapshot.name!r} has no theta: S2ESampler drew none of its trials."
        )
    if snapshot.space is None:
        return p.empty_figure(title, "uniform (θ = 1) until the first generation is complete")
    proportions, marginals = snapshot.theta_summary
    areas = proportions[:MAX_AREAS]
    rows = _most_moved(marginals, MAX_ROWS - 4 * max(0, len(areas) - 1))
    n_generations = len(snapshot.generations)
    shown = p.thinned(n_generations, p.MAX_GENERATIONS)
    layout = p.layout_of(title, "generation", None)
    x, y = layout.pop("xaxis"), layout.pop("yaxis")
    x |= p.generation_ticks(n_generations)
    spans = p.domains([1.0] * len(areas) + [max(1.0, len(rows) / 4)] * bool(rows))
    traces: list[p.Trace] = []
    for k, area in enumerate(areas, start=1):
        traces += _stacked_areas(area, shown, k)
        hidden: dict[str, Any] = {"showticklabels": False, "title": None} if rows else {}
        if rows and k > 1:
            hidden["matches"] = "x"
        layout[p.axis_name("xaxis", k)] = x | {"anchor": p.axis_name("y", k)} | hidden
        layout[p.axis_name("yaxis", k)] = y | {
            "domain": spans[k - 1], "range": [0, 1], "title": {"text": p.text(area.name)}
        }  # fmt: skip
    if rows:
        k = len(areas) + 1
        space = snapshot.schedule_space
        meanings = space.meanings if space is not None else {}
        labels = []
        for i, row in enumerate(rows):
            distribution = snapshot.space.distributions[row.name]
            values = [p.short_text(decode(mean, distribution)) for mean in row.mean[shown]]
            what = meanings.get(row.name)
            traces += _row(row, shown, len(rows) - 1 - i, k, values, what)
            label = f"{p.text(row.name, MAX_ROW_LABEL)}  {values[-1]}"
            if what and len(rows) <= ROOMY:
                label += f"<br><span style='font-size:10px'>{what}</span>"
            labels.append(label)
        layout[p.axis_name("xaxis", k)] = x | {"anchor": p.axis_name("y", k)}
        layout[p.axis_name("yaxis", k)] = y | {"domain": spans[-1]} | _row_axis(labels, k)
    if not areas:
        layout["margin"]["b"] = 60  # there is no legend
    _explain(layout, len(proportions) - len(areas) + len(marginals) - len(rows), bool(rows))
    return {"data": traces, "layout": layout}


def _row_axis(labels: Sequence[str], k: int) -> dict[str, Any]:
    """Return the vertical axis of rows: labels in their middle, grid lines between them."""
    n_rows = len(labels)
    return {
        "anchor": p.axis_name("x", k),
        "range": [0, n_rows],
        "tickvals": [n_rows - 0.5 - i for i in range(n_rows)],
        "ticktext": list(labels),
        "tickfont": {"size": 12 if n_rows <= MAX_ROWS // 2 else 10},
        "showgrid": False,
        "minor": {"tick0": 0, "dtick": 1, "showgrid": True, "gridcolor": p.GRID},
    }


def _explain(layout: dict[str, Any], n_left_out: int, has_rows: bool) -> None:
    """Say under the title how to read the rows; lines short enough for half a narrow page."""
    lines = ["one row per parameter: range, mean ± deviation, newest mean"] if has_rows else []
    if n_left_out:
        lines.append(f"not shown: the {n_left_out} parameters that moved least")
    if lines:
        layout["title"]["subtitle"] = {"text": "<br>".join(lines)}
        layout["margin"]["t"] += 15 * (len(lines) - 1)


def _stacked_areas(area: Proportions, shown: npt.NDArray[np.int64], k: int) -> list[p.Trace]:
    colors = p.COLORS[(k - 1) * 4 :] + p.COLORS[: (k - 1) * 4]
    return [
        {
            "x": shown.tolist(),
            "y": p.rounded(area.means[shown, i], 4),
            "xaxis": p.axis_name("x", k),
            "yaxis": p.axis_name("y", k),
            "stackgroup": f"{k}",
            "mode": "lines",
            "line": {"width": 0.5, "color": colors[i % len(colors)]},
            "name": p.text(label),
            "hovertemplate": f"{p.text(label)}: %{{y}}<extra></extra>",
        }
        for i, label in enumerate(area.labels[:MAX_WEIGHTS])
    ]


def _row(
    row: Marginal,
    shown: npt.NDArray[np.int64],
    base: int,
    k: int,
    values: Sequence[str],
    what: str | None,
) -> list[p.Trace]:
    """Draw mean and standard deviation of one parameter in its row."""

    def height(share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return base + _LOW + _HEIGHT * np.clip(share, 0, 1)

    mean, deviation = row.mean[shown], row.deviation[shown]
    axes = {"xaxis": p.axis_name("x", k), "yaxis": p.axis_name("y", k), "showlegend": False}
    band = p.filled_band(shown, height(mean - deviation), height(mean + deviation), _BAND)
    line = p.line(shown, height(mean), p.COLORS[0], 1.5, "") | {
        "customdata": list(values),
        "hovertemplate": f"{p.text(row.name)}{f' ({what})' if what else ''}: %{{customdata}}"
        "<extra></extra>",
    }
    return [band | axes, line | axes]


def _most_moved(marginals: Sequence[Marginal], n: int) -> list[Marginal]:
    """Return the n marginals whose mean moved most, in their own order."""
    moved = sorted(marginals, key=lambda m: -float(np.ptp(m.mean)))[:n]
    return [m for m in marginals if any(m is other for other in moved)]
