"""The results of an evaluation as a table, a JSON file and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optuna_s2e.coteaching._evaluation import EARLY_STOPPING, Evaluation
from optuna_s2e.coteaching._evaluation_rows import package_versions
from optuna_s2e.coteaching._methods import METHODS, find_method, method_settings
from optuna_s2e.coteaching._steps import Method
from optuna_s2e.schedules import Schedule

TITLES = {
    "standard": "Standard", "coteaching": "Co-teaching", "suggested": "Suggested",
    "searched": "Searched (S2E)", "early-stopping": "Standard, early stopping",
    "f-correction-true": "F-correction, true T",
}  # fmt: skip
_MANY = 6  # rows; with more, their bands hide one another
COLORS = {
    "standard": "#777777", "coteaching": "#d9822b", "suggested": "#3d9970", "searched": "#2b6cb0",
    "early-stopping": "#222222",
}  # fmt: skip


def evaluation_table(
    evaluations: Mapping[str, Evaluation], remarks: Mapping[str, str] | None = None
) -> str:
    """Return a table of test accuracies in percent: mean and standard deviation over the seeds.

    The last column is the mean of the paired differences to Standard, with its standard error.

    Args:
        evaluations: What `evaluate_schedules` returned; "standard" must be among the schedules.
        remarks: What is said of a schedule behind its title, by name, such as the noise rate that
            it follows.

    Returns:
        One line per schedule, between a line of titles and a line that explains the numbers.

    Raises:
        ValueError: If there is no evaluation of "standard".

    Example:
        >>> accuracy = np.array([[0.5, 0.625], [0.75, 0.875]])  # two seeds, two epochs
        >>> standard = Evaluation(accuracy, accuracy, (0, 1), accuracy[:, 1])
        >>> print(evaluation_table({"standard": standard}).splitlines()[1].rstrip())
        Standard             75.00 ± 17.68        87.50, 62.50
    """
    _check_holds("evaluations", evaluations, "standard")
    standard = evaluations["standard"].final_accuracy
    titles = {name: _title(name, remarks) for name in evaluations}
    width = max(16, 1 + max(map(len, titles.values())))
    lines = [
        f"{'method':{width}}{'test accuracy':>18}{'best, worst seed':>20}{'over Standard':>18}"
    ]
    for name, evaluation in evaluations.items():
        accuracy = 100 * evaluation.final_accuracy
        gain = accuracy - 100 * standard
        error = gain / np.sqrt(len(gain))
        over = "" if name == "standard" else f"{gain.mean():+.2f}{_spread(error)}"
        lines.append(
            f"{titles[name]:{width}}{f'{accuracy.mean():.2f}{_spread(accuracy)}':>18}"
            f"{f'{accuracy.max():.2f}, {accuracy.min():.2f}':>20}{over:>18}"
        )
    seeds = "one fresh seed."
    if len(standard) > 1:
        spread = "± standard deviation; differences ± standard error"
        seeds = f"{len(standard)} fresh seeds ({spread})."
    lines.append(f"Test accuracy in %, both networks, last 10 % of the epochs, {seeds}")
    return "\n".join(lines)


def title_of(name: str) -> str:
    """Return the title of a row: of a method, or of one under the searched schedule.

    Example:
        >>> title_of("jocor"), title_of("jocor/searched"), title_of("mine")
        ('JoCoR', 'JoCoR, searched R(t)', 'mine')
    """
    method, _, schedule = name.partition("/")
    title = TITLES.get(method) or (METHODS[method].title if method in METHODS else method)
    if schedule:
        return f"{title}, searched R(t)" if schedule == "searched" else name
    return title


def _title(name: str, remarks: Mapping[str, str] | None) -> str:
    title, remark = title_of(name), (remarks or {}).get(name)
    if not remark:
        return title
    return f"{title[:-1]}, {remark})" if title.endswith(")") else f"{title} ({remark})"


def _spread(values: np.ndarray) -> str:
    return f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""


def save_evaluation(
    folder: Path,
    schedules: Mapping[str, Schedule],
    evaluations: Mapping[str, Evaluation],
    *,
    settings: Mapping[str, Any],
    study_name: str,
    remarks: Mapping[str, str] | None = None,
    methods: Mapping[str, str | Method] | None = None,
) -> dict[str, Any]:
    """Write evaluation.json, evaluation.png and schedule.json into a folder.

    Args:
        folder: Folder to write to. It is made if it is missing.
        schedules: Schedules by name. That named "searched" is written to schedule.json.
        evaluations: What `evaluate_schedules` returned for some or all of these schedules.
        settings: What `CoteachingObjective.settings` returned.
        study_name: Name of the study that found the schedule.
        remarks: As in `evaluation_table`.
        methods: As in `evaluate_schedules`.

    Returns:
        What evaluation.json holds.

    Raises:
        ValueError: If no schedule is named "searched", or an evaluated schedule is missing.
        ImportError: If matplotlib is missing.
        OSError: If a file cannot be written.
    """
    _check_holds("schedules", schedules, "searched", *evaluations)
    folder.mkdir(parents=True, exist_ok=True)
    schedules["searched"].save(folder / "schedule.json")
    document = {
        "study": study_name,
        "settings": dict(settings),
        "versions": package_versions(),
        "methods": {
            name: {
                "keep_rates": schedules[name].keep_rates.tolist(),
                "params": schedules[name].params,
                "remark": (remarks or {}).get(name),
                "method": _method_settings((methods or {}).get(name, "coteaching")),
                "seeds": list(evaluation.seeds),
                "final_accuracy": _json(evaluation.final_accuracy, 6),
                "test_accuracy": _json(evaluation.test_accuracy, 5),
                "label_precision": _known(evaluation.label_precision),
            }
            for name, evaluation in evaluations.items()
        },
    }
    (folder / "evaluation.json").write_text(json.dumps(document, indent=1) + "\n")
    _draw(folder / "evaluation.png", schedules, evaluations, settings, remarks)
    return document


def _method_settings(method: str | Method) -> str | dict[str, Any]:
    return method if method == EARLY_STOPPING else method_settings(find_method(method))


def _check_holds(argument: str, mapping: Mapping[str, Any], *names: str) -> None:
    missing = [name for name in names if name not in mapping]
    if missing:
        raise ValueError(f"{argument} must hold {missing}, but got {list(mapping)}.")


def _json(values: np.ndarray, digits: int) -> list[Any]:
    """Return rounded numbers for JSON, which knows no NaN."""
    rounded = np.round(values, digits).astype(object)
    rounded[~np.isfinite(values)] = None
    found: list[Any] = rounded.tolist()
    return found


def _known(curves: np.ndarray) -> list[Any] | None:
    return _json(curves, 5) if np.isfinite(curves).any() else None


def _draw(
    path: Path,
    schedules: Mapping[str, Schedule],
    evaluations: Mapping[str, Evaluation],
    settings: Mapping[str, Any],
    remarks: Mapping[str, str] | None,
) -> None:
    """Draw R(t), test accuracy and, if known, label precision by epoch. Bands are min and max."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    accuracies = {name: 100 * e.test_accuracy for name, e in evaluations.items()}
    precisions = {name: 100 * e.label_precision for name, e in evaluations.items()}
    panels = {"Test accuracy (%)": accuracies}
    if any(np.isfinite(curves).any() for curves in precisions.values()):
        panels["Right labels among those trained on (%)"] = precisions
    figure = Figure(figsize=(4 + 4 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display and changes no global state
    axes = figure.subplots(1, 1 + len(panels))
    styles = {n: {"color": color, "label": _title(n, remarks)}
              for n, color in _colors(evaluations).items()}  # fmt: skip
    alpha = 0.2 if len(evaluations) <= _MANY else 0.0
    axes[0].set(title="Schedule R(t): share trained on", ylim=(0, 1.03))
    for name, style in styles.items():
        axes[0].plot(schedules[name].keep_rates, lw=2, **style)
    for axis, (title, panel) in zip(axes[1:], panels.items(), strict=True):
        axis.set(title=title)
        for name, curves in panel.items():
            epochs, color = np.arange(curves.shape[1]), styles[name]["color"]
            axis.plot(epochs, curves.mean(axis=0), lw=2, color=color)
            axis.fill_between(
                epochs, curves.min(axis=0), curves.max(axis=0), color=color, alpha=alpha
            )
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    n_repeats = len(next(iter(evaluations.values())).seeds)
    shown = "mean, minimum and maximum" if alpha else "mean"
    figure.suptitle(
        f"{_describe(settings)}: {shown} of {n_repeats} seeds"
        if n_repeats > 1
        else f"{_describe(settings)}: one seed"
    )
    figure.savefig(path, dpi=110)


def _colors(names: Iterable[str]) -> dict[str, Any]:
    """Return a colour for each row: its own, or one of a list."""
    from matplotlib import colormaps

    palette = colormaps["tab20"]
    return {name: COLORS.get(name) or palette(i % palette.N) for i, name in enumerate(names)}


def _describe(settings: Mapping[str, Any]) -> str:
    """Say what was trained on: data, the noise that was added, network."""
    data = settings["data"]
    added = data.get("noise") not in (None, "none") and data.get("noise_rate")
    noise = f"{100 * data['noise_rate']:g} % {data['noise']} noise" if added else "no noise added"
    return f"{data['name']}, {noise}, {settings['network']}"
