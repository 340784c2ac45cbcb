"""A list of label errors as CSV, as JSON, and as a page with the worst of each class.

The page is one file. It loads nothing, runs nothing, follows the light or dark of the browser, and
is read with a keyboard as any page is. Every text of the data is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from optuna_s2e._checks import check_int
from optuna_s2e.coteaching.data import NoisyData

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("index", "given_label", "suggested_label", "quality", "evidence")
_MOST_FEATURES = 8


def save_label_errors(
    errors: pd.DataFrame,
    folder: str | Path,
    *,
    inputs: NoisyData | pd.DataFrame | npt.ArrayLike | Tensor | None = None,
    n_per_class: int = 12,
    title: str = "Label errors",
    names: Sequence[str] | None = None,
) -> None:
    """Save a list of label errors as label-errors.csv, .json and .html.

    Args:
        errors: What `find_label_errors` or `list_label_errors` returned.
        folder: Where to write; it is made if it is missing.
        inputs: What the samples are, to show them on the page, in the order of the training data:
            the data, images (N, channels, height, width), (N, height, width, channels) or
            (N, height, width), or a data frame, whose first eight columns are shown. None, or an
            array of another kind, shows numbers of samples alone.
        n_per_class: How many labels of each class the page shows, at least 1. The other two
            files hold all.
        title: Title of the page.
        names: What each training sample is called, such as its file, in place of its number; in
            the files, the column index then holds it.

    Raises:
        ValueError: If columns are missing, the list names samples that `inputs` or `names` lacks,
            or `n_per_class` is out of range.
        OSError: If the folder cannot be written to, or is a file.
    """
    check_int("n_per_class", n_per_class, 1)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"folder must be a folder, but {str(folder)!r} is a file.")
    missing = [name for name in _COLUMNS if name not in errors.columns]
    if missing:
        raise ValueError(
            f"errors must have the columns {', '.join(_COLUMNS)}, but lacks {', '.join(missing)}. "
            "find_label_errors returns such a data frame."
        )
    shown: Any = inputs.x if isinstance(inputs, NoisyData) else inputs
    if shown is not None and not hasattr(shown, "iloc"):
        shown = np.asarray(shown.detach().cpu() if isinstance(shown, Tensor) else shown)
    last = int(errors["index"].max()) if len(errors) else -1
    for argument, given in (("inputs", shown), ("names", names)):
        if given is not None and last >= len(given):
            raise ValueError(
                f"{argument} must hold all samples that errors names, but holds {len(given)}, and "
                f"errors names sample {last}. Pass what the networks were trained on."
            )
    texts = errors.assign(**{
        name: errors[name].map(_text) for name in ("given_label", "suggested_label")
    })  # fmt: skip
    page = _page(texts, shown, n_per_class, title, names)
    if names is not None:
        texts["index"] = [names[index] for index in texts["index"]]
    folder.mkdir(parents=True, exist_ok=True)
    texts.to_csv(folder / "label-errors.csv", index=False)
    texts.to_json(folder / "label-errors.json", orient="records", indent=2, force_ascii=False)
    (folder / "label-errors.html").write_text(page, encoding="utf-8")


def _text(label: Any) -> Any:
    """Return bytes as text, other labels as they are."""
    return label.decode(errors="replace") if isinstance(label, bytes) else label


def _page(
    errors: pd.DataFrame, inputs: Any, n_per_class: int, title: str, names: Sequence[str] | None
) -> str:
    show = _shower(inputs)
    links, sections = [], []
    for i, label in enumerate(errors["given_label"].value_counts().index):  # most errors first
        rows = errors[errors["given_label"] == label].to_dict("records")
        name = escape(str(label))
        links.append(f'<li><a href="#class-{i}">{name} <span>{len(rows)}</span></a></li>')
        more = f", the worst {n_per_class} are shown" if len(rows) > n_per_class else ""
        count = "1 label is listed" if len(rows) == 1 else f"{len(rows)} labels are listed"
        cards = "".join(
            _card(row, show(row["index"]), names[row["index"]] if names is not None else "")
            for row in rows[:n_per_class]
        )
        sections.append(
            f'<section id="class-{i}" aria-labelledby="title-{i}"><h2 id="title-{i}">Given as '
            f"{name}</h2><p>{count}{more}.</p><ol>{cards}</ol></section>"
        )
    return _PAGE.format(
        title=escape(title),
        style=_STYLE,
        summary=f"{len(errors)} labels are listed as wrong. Quality is how likely a label is to "
        "be right, by what the networks below say of its sample."
        + ("" if names is not None else " Samples are counted from 0."),
        links="".join(links),
        sections="".join(sections),
    )


def _card(row: dict[str, Any], shown: str, name: str) -> str:
    given, suggested = (escape(str(row[name])) for name in ("given_label", "suggested_label"))
    title = escape(name) or f"Sample {row['index']}"
    return (
        f"<li>{shown}<h3>{title}</h3><p>given <b>{given}</b>, suggested "
        f"<b>{suggested}</b></p><p>quality {_quality(row['quality'])}</p>"
        f"<p>{escape(str(row['evidence'])).replace(' %', '&nbsp;%')}</p></li>"
    )


def _shower(inputs: Any) -> Callable[[int], str]:
    """Return the function that shows the sample of a number as HTML."""
    if inputs is None:
        return lambda index: ""
    if hasattr(inputs, "iloc"):
        return lambda index: _features(inputs.iloc[index])
    colours = _colours(inputs)
    return lambda index: "" if colours is None else _picture(colours(index), index)


def _features(row: pd.Series) -> str:
    cells = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(_cell(value))}</dd>"
        for name, value in row.iloc[:_MOST_FEATURES].items()
    )
    more = len(row) - _MOST_FEATURES
    return f"<dl>{cells}</dl>" + (f"<p><small>and {more} more</small></p>" if more > 0 else "")


def _quality(quality: float) -> str:
    """Return a quality with three digits; the worst ones are below them."""
    return "below 0.001" if quality < 0.001 else f"{quality:.3f}"


def _cell(value: Any) -> str:
    """Return a value of a table, short: numbers with four digits."""
    if value is None or type(value).__name__ == "NAType" or value != value:  # NaN, NaT
        return "missing"
    if isinstance(value, float | np.floating) and np.isfinite(value):
        return str(int(value)) if float(value).is_integer() else f"{value:.4g}"
    return str(value)


def _colours(images: npt.NDArray[Any]) -> Callable[[int], npt.NDArray[np.uint8]] | None:
    """Return the function that gives an image as colours, (height, width, 3); None without any."""
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or not images.size or images.dtype.kind not in "buif":
        return None
    if images.shape[1] not in (1, 3):
        images = np.moveaxis(images, 3, 1)
    if images.shape[1] not in (1, 3):
        return None
    low, high = (0.0, 255.0) if images.dtype == np.uint8 else (images.min(), images.max())

    def colours(index: int) -> npt.NDArray[np.uint8]:
        scaled = 255 * (images[index].astype(np.float64) - low) / max(float(high - low), 1e-12)
        rgb = np.broadcast_to(scaled.round().astype(np.uint8), (3, *scaled.shape[1:]))
        return np.moveaxis(rgb, 0, 2)

    return colours


def _picture(colours: npt.NDArray[np.uint8], index: int) -> str:
    """Return an image as a PNG in the page."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(colours), format="png")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="sample {index}" src="data:image/png;base64,{data}">'


_STYLE = """
:root { color-scheme: light dark; --line: #c9ced6; --soft: #f3f5f8; --link: #0b57b0; }
@media (prefers-color-scheme: dark) {
  :root { --line: #454c57; --soft: #23272e; --link: #8ab8ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; overflow-wrap: anywhere;
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin: 2rem 0 0; }
h3 { font-size: 1rem; margin: .5rem 0 0; } p { margin: .25rem 0; }
a { color: var(--link); } :focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
ol, nav ul { list-style: none; padding: 0; display: grid; gap: .75rem; }
ol { grid-template-columns: repeat(auto-fill, minmax(min(13rem, 100%), 1fr)); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
li { min-width: 0; } nav span { opacity: .75; }
ol li { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem;
  background: var(--soft); }
img { width: 8rem; max-width: 100%; image-rendering: pixelated; display: block; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .5rem; margin: 0; font-size: .875rem; }
dd { margin: 0; text-align: right; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#errors">Skip to the labels</a>
<header><h1>{title}</h1><p>{summary}</p></header>
<nav aria-label="Classes"><ul>{links}</ul></nav>
<main id="errors" tabindex="-1">{sections}</main>
</body>
</html>
"""
