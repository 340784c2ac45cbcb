"""What benchmarks and fault tests share: an objective, summaries of times, result files."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy

D = 4


def objective(trial: optuna.Trial) -> float:
    """Quadratic in 4 dimensions."""
    return sum((trial.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(D))


def quantiles(times: list[float]) -> dict[str, float]:
    """Return median, 99 % quantile and maximum of seconds, as milliseconds."""
    median, high, most = 1e3 * np.quantile(times, [0.5, 0.99, 1.0])
    return {"p50_ms": round(median, 2), "p99_ms": round(high, 2), "max_ms": round(most, 2)}


def shown(row: dict[str, Any]) -> str:
    """Return a row as one line of text."""
    parts = []
    for key, value in row.items():
        inner = f"({shown(value)})" if isinstance(value, dict) else value
        parts.append(f"{key.replace('_', ' ')} {inner}")
    return ", ".join(parts)


def save(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Write rows, the command that made them and the versions. Without a path, do nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = [a for a in sys.argv[1:] if a not in ("--json", str(path))]
    head = {
        "command": " ".join([Path(sys.argv[0]).name, *arguments]),
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (optuna, np, sqlalchemy)},
        },
        "cores": os.cpu_count(),
    }
    path.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
