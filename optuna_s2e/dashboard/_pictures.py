"""The picture of a trial: R(t) above its validation error and label precision, as SVG.

It is made for a card of 200 by 150 pixels: few and large elements, a transparent background, and
colours that are legible on white and on black. Every text in it is a number or a constant of this
module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from optuna_s2e._typing import FloatArray
from optuna_s2e.schedules import Schedule

WIDTH, HEIGHT = 400, 300
MAX_POINTS = 80
_TEXT, _FRAME = "#6f7786", "rgba(128,136,150,0.35)"
_SCHEDULE, _ERROR, _PRECISION = "#4f86f7", "#ef8a2c", "#22a06b"

# name of the curve, label, colour; the first two that a trial has are drawn
SPARKLINES = (
    ("error", "val. error", _ERROR),
    ("label_precision", "label prec.", _PRECISION),
    ("loss", "val. loss", _ERROR),
    ("train_accuracy", "train acc.", _PRECISION),
)


def picture(
    number: int,
    schedule: Schedule,
    curves: Mapping[str, Sequence[float]],
    *,
    value: float | None = None,
    epoch: int | None = None,
) -> str:
    """Draw a trial as SVG.

    Args:
        number: Number of the trial.
        schedule: R(t) of the trial.
        curves: One value per finished epoch, by name. NaN where unknown.
        value: What the trial returned, or would return now. None before the first epoch.
        epoch: Number of finished epochs while the trial runs. None once it has ended.
    """
    rates = schedule.keep_rates
    n_epochs = len(rates)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" fill="{_TEXT}">',
        _text(12, 34, f"#{number}", size=32, bold=True),
    ]
    if value is not None and math.isfinite(value):
        parts.append(_text(388, 34, f"{value:.4g}", size=32, bold=True, anchor="end"))
    if epoch is not None:
        parts.append(_text(32 + 20 * len(f"#{number}"), 33, f"{epoch}/{n_epochs}", size=22))
    parts += _schedule(rates, epoch)
    shown = [(n, label, color) for n, label, color in SPARKLINES if _known(curves.get(n))][:2]
    for k, (name, label, color) in enumerate(shown):
        parts += _sparkline(12 + 194 * k, np.asarray(curves[name]), n_epochs, label, color)
    return "".join([*parts, "</svg>"])


def _known(curve: Sequence[float] | None) -> bool:
    return curve is not None and len(curve) > 0 and bool(np.isfinite(curve).all())


def _schedule(rates: FloatArray, epoch: int | None) -> list[str]:
    """Draw R(t) with its final value, and a vertical line at the present epoch."""
    left, top, width, height = 12, 46, 376, 146
    t = np.linspace(0, len(rates) - 1, min(len(rates), MAX_POINTS))
    y = np.interp(t, np.arange(len(rates)), rates)
    line = _points(left + width * t / (len(rates) - 1), top + height * (1 - y))
    bottom = top + height
    label = f"final R {rates[-1]:.2f}"
    parts = [
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" '
        f'stroke="{_FRAME}" stroke-width="2"/>',
        f'<polygon points="{left},{bottom} {line} {left + width},{bottom}" '
        f'fill="{_SCHEDULE}" fill-opacity="0.18"/>',
        f'<polyline points="{line}" fill="none" stroke="{_SCHEDULE}" stroke-width="6" '
        'stroke-linejoin="round"/>',
        # the label stands where the curve is not
        _text(left + width - 8, top + 26, label, size=24, anchor="end")
        if rates[-1] < 0.5
        else _text(left + 8, bottom - 10, label, size=24),
    ]
    if epoch is not None:
        x = left + width * max(0, epoch - 1) / (len(rates) - 1)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{_ERROR}" '
            'stroke-width="3"/>'
        )
    return parts


def _sparkline(left: int, curve: FloatArray, n_epochs: int, label: str, color: str) -> list[str]:
    top, width, height = 226, 182, 62
    epochs = np.arange(len(curve))
    at = np.linspace(0, len(curve) - 1, min(len(curve), MAX_POINTS))
    values = np.interp(at, epochs, curve)
    low, high = float(curve.min()), float(curve.max())
    y = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    line = _points(left + width * at / max(1, n_epochs - 1), top + height * (1 - y))
    return [
        f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="4" '
        'stroke-linejoin="round" stroke-linecap="round"/>',
        _text(left, 216, label, size=20),
        _text(left + width, 216, f"{curve[-1]:.3g}", size=20, bold=True, anchor="end"),
    ]


def _points(x: FloatArray, y: FloatArray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _text(
    x: float, y: float, text: str, *, size: int, bold: bool = False, anchor: str = "start"
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight}'
    return f"<text {place}>{text}</text>"
