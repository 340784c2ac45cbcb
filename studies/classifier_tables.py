"""Tables with 30 % wrong labels: `NoisyLabelClassifier` beside gradient boosting and cleanlab.

    python studies/classifier_tables.py --seeds 3       # all tables (it resumes)
    python studies/classifier_tables.py --only trees    # one kind of table
    python studies/classifier_tables.py --report        # only prints the results

Each table has 10,000 rows of ten columns of numbers (three of them skewed) and six of categories,
5 % of the values are missing, the labels are strings, and 30 % of them are wrong (to any other
class, or to the next one). Another 10,000 rows with true labels measure accuracy. Four kinds of
rules make the labels:

    clusters    scikit-learn's make_classification; six columns cut into categories
    trees       sums of random regression trees, as gradient boosting likes them
    network     a random network of one hidden layer
    additive    smooth functions of single columns, effects of categories and one interaction

A fifth kind is real: scikit-learn's digits, half of the 1,797 to train on, 64 columns of numbers.

The defaults of the classifier were chosen on tables of seeds 0 and 1; this study takes others.
"quick" is `n_pairs=0`: the networks of the noise's estimate are the model. cleanlab gets
out-of-fold probabilities (5 folds) of gradient boosting, its usual quick model for tables, and of
one network of the classifier's size, epochs and mini-batches, by scikit-learn. It needs the extra
`studies`. Times are CPU seconds of one thread, all methods side by side in one process. Those of
the classifier hold the model, the list and 10,000 predictions, those of cleanlab the list alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import runs
from cleanlab.filter import find_label_issues
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_digits, make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from optuna_s2e import NoisyLabelClassifier

N_ROWS = 20_000  # half of them to train on
RATE, MISSING = 0.3, 0.05
FIRST_SEED = 20
RESULTS = Path(__file__).parent / "results" / "classifier_tables.json"


class Table(NamedTuple):
    """A table, its labels and what is right."""

    x: pd.DataFrame
    y: np.ndarray
    true: np.ndarray
    x_test: pd.DataFrame
    y_test: np.ndarray


def clusters(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers, categories and classes of Gaussian clusters."""
    x, y = make_classification(
        N_ROWS, 16, n_informative=9, n_redundant=3, n_classes=4, class_sep=1.3, flip_y=0,
        random_state=int(rng.integers(2**31)),
    )  # fmt: skip
    categories = []
    for column in x.T[10:]:
        k = int(rng.integers(3, 9))
        cuts = np.quantile(column, np.linspace(0, 1, k + 1)[1:-1])
        categories.append(rng.permutation(k)[np.searchsorted(cuts, column)])
    return x[:, :10].copy(), np.array(categories).T, y


def trees(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers, categories and classes that sums of random trees make."""
    numbers, categories = columns(rng)
    x, scores = np.column_stack([numbers, categories]).astype(float), np.zeros((N_ROWS, 4))
    for label in range(4):
        for _ in range(5):
            tree = DecisionTreeRegressor(
                max_depth=4, splitter="random", max_features=3,
                random_state=int(rng.integers(2**30)),
            )  # fmt: skip
            rows = rng.choice(N_ROWS, 400, replace=False)
            scores[:, label] += tree.fit(x[rows], rng.normal(size=400)).predict(x)
    return numbers, categories, draw(scores, rng, 0.15)


def network(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers, categories and classes that a random network makes."""
    numbers, categories = columns(rng)
    one_hot = [np.eye(column.max() + 1)[column] for column in categories.T]
    z = np.hstack([(numbers - np.median(numbers, axis=0)) / numbers.std(axis=0), *one_hot])
    hidden = np.tanh(z @ rng.normal(size=(z.shape[1], 32)) / 2 + rng.normal(size=32) / 2)
    return numbers, categories, draw(hidden @ rng.normal(size=(32, 4)), rng, 0.15)


def additive(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers, categories and classes that add up over the columns."""
    numbers, categories = columns(rng)
    scores = np.zeros((N_ROWS, 3))
    for label in range(3):
        for column in numbers.T[:8]:
            u = column.argsort().argsort() / N_ROWS
            wave = np.sin(2 * np.pi * rng.uniform(0.3, 1.2) * u + rng.uniform(0, 6))
            scores[:, label] += rng.normal() * u + rng.normal() * wave
        for column in categories.T:
            scores[:, label] += rng.normal(size=20)[column]
        a, b = categories.T[rng.integers(0, 6, size=2)]
        scores[:, label] += 0.8 * rng.normal(size=(20, 20))[a, b]
    return numbers, categories, draw(scores, rng, 0.2)


def columns(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return correlated numbers, (N, 10), and categories, (N, 6)."""
    numbers = rng.normal(size=(N_ROWS, 10)) @ (
        rng.normal(size=(10, 10)) / 10**0.5 + 0.7 * np.eye(10)
    )
    numbers[:, ::3] = np.exp(numbers[:, ::3])
    sizes = rng.integers(3, 13, size=6)
    categories = [rng.choice(k, size=N_ROWS, p=rng.dirichlet(2 * np.ones(k))) for k in sizes]
    return numbers, np.array(categories).T


def draw(scores: np.ndarray, rng: np.random.Generator, temperature: float) -> np.ndarray:
    """Return a class of each row, more likely with a larger score."""
    standard = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    return (standard / temperature + rng.gumbel(size=scores.shape)).argmax(axis=1)


def digits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels of scikit-learn's digits, no categories, and their classes."""
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(y) // 2 * 2)
    return x[order], np.empty((len(order), 0), dtype=int), y[order]


KINDS = {
    "clusters": clusters, "trees": trees, "network": network, "additive": additive,
    "digits": digits,
}  # fmt: skip


def make_table(kind: str, noise: str, seed: int) -> Table:
    """Make a table, with holes and wrong labels."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    numbers, categories, y = KINDS[kind](rng)
    numbers[rng.random(numbers.shape) < MISSING] = np.nan
    gone = rng.random(categories.shape) < MISSING
    frame = pd.DataFrame(numbers, columns=[f"number {i}" for i in range(numbers.shape[1])])
    for i in range(categories.shape[1]):
        values = np.array([f"kind {v}" for v in categories[:, i]], dtype=object)
        values[gone[:, i]] = None
        frame[f"category {i}"] = pd.Series(values).astype("category")
    names = np.array(["blue", "green", "red", "white", *"abcdef"])
    n_classes, n, half = int(y.max()) + 1, len(y), len(y) // 2
    steps = rng.integers(1, n_classes, size=n) if noise == "symmetric" else 1
    given = np.where(rng.random(n) < RATE, (y + steps) % n_classes, y)
    return Table(
        frame[:half], names[given[:half]], names[y[:half]],
        frame[half:].reset_index(drop=True), names[y[half:]],
    )  # fmt: skip


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Call a function; return its result and its CPU seconds."""
    started = time.process_time()
    return function(), round(time.process_time() - started, 2)


def boosting(*, early_stopping: bool | str = "auto") -> HistGradientBoostingClassifier:
    """Return scikit-learn's gradient boosting."""
    return HistGradientBoostingClassifier(
        categorical_features="from_dtype", random_state=0, early_stopping=early_stopping
    )


def one_network(n_rows: int) -> Any:
    """Return one network of the classifier's size, epochs and mini-batches, with its inputs."""
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    categories = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer(
        (numbers, lambda x: list(x.columns[x.columns.str.startswith("number")])),
        (categories, lambda x: list(x.columns[x.columns.str.startswith("category")])),
    )
    network = MLPClassifier(
        (128, 128), batch_size=128 if n_rows > 5000 else 16, learning_rate_init=2e-3, max_iter=20,
        random_state=0,
    )  # fmt: skip
    return make_pipeline(columns, network)


def judge(listed: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Return precision and recall of a list, and its precision at the true number."""
    n, hits = len(listed), wrong[listed]
    return {
        "n": n,
        "precision": round(float(hits.mean()), 4),
        "recall": round(float(hits.sum() / wrong.sum()), 4),
    }


def ours(table: Table, wrong: np.ndarray, name: str) -> dict[str, Any]:
    """Fit the classifier; return what it is worth."""
    model = NoisyLabelClassifier(
        search=name == "search", n_pairs=int(name != "quick"), device="cpu", random_state=0,
        progress=False,
    )  # fmt: skip
    (errors, predicted), seconds = timed(
        lambda: (
            model.fit(table.x, table.y).find_label_errors(),
            model.predict(table.x_test),
        )
    )
    worst = model.label_quality_.argsort()[: wrong.sum()]
    return {
        "accuracy": round(float((predicted == table.y_test).mean()), 4),
        "noise_rate": round(model.noise_rate_, 4),
        "errors": judge(errors["index"].to_numpy(), wrong),
        "at_true_number": judge(worst, wrong),
        "average_precision": round(average_precision_score(wrong, -model.label_quality_), 4),
        "seconds": seconds,
    }


def by_boosting(table: Table, **arguments: Any) -> dict[str, Any]:
    """Fit gradient boosting; return what it is worth."""
    model, seconds = timed(lambda: boosting(**arguments).fit(table.x, table.y))
    return {"accuracy": round(model.score(table.x_test, table.y_test), 4), "seconds": seconds}


def by_cleanlab(table: Table, wrong: np.ndarray, model: Any) -> dict[str, Any]:
    """Return what cleanlab's list is worth that follows from a model."""
    classes, given = np.unique(table.y, return_inverse=True)

    def find() -> tuple[np.ndarray, np.ndarray]:
        p = cross_val_predict(model, table.x, table.y, cv=5, method="predict_proba")
        return p, find_label_issues(
            given, p, return_indices_ranked_by="normalized_margin", n_jobs=1
        )

    (p, listed), seconds = timed(find)
    own = p[np.arange(len(given)), given]
    others = np.where(np.eye(len(classes), dtype=bool)[given], -1, p).max(axis=1)
    worst = (own - others).argsort()[: wrong.sum()]
    return {
        "errors": judge(listed, wrong),
        "at_true_number": judge(worst, wrong),
        "average_precision": round(average_precision_score(wrong, others - own), 4),
        "seconds": seconds,
    }


def run(job: runs.Job) -> dict[str, Any]:
    """Return the results of some methods on one table."""
    warnings.simplefilter("ignore")
    kind, noise, seed = str(job[0]), str(job[1]), int(job[2])
    table = make_table(kind, noise, seed)
    wrong = table.y != table.true
    if job[3] == "search":
        return {"search": ours(table, wrong, "search")}
    return {
        "quick": ours(table, wrong, "quick"),
        "suggested": ours(table, wrong, "suggested"),
        "boosting": by_boosting(table),
        "boosting_early": by_boosting(table, early_stopping=True),
        "cleanlab_boosting": by_cleanlab(table, wrong, boosting()),
        "cleanlab_network": by_cleanlab(table, wrong, one_network(len(table.y))),
    }


def report(results: runs.Results) -> None:
    """Print tables: accuracies, lists of errors, average precision, and ratios of seconds."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for key, result in results.items():
        if "quick" in result:
            rows.setdefault(tuple(key.split("|")[:2]), []).append(result)
    models = ("quick", "suggested", "boosting", "boosting_early")
    methods = ("quick", "suggested", "cleanlab_boosting", "cleanlab_network")
    tables: list[tuple[str, tuple[str, ...], Callable[[dict[str, Any]], float]]] = [
        ("Accuracy", models, lambda r: r["accuracy"]),
        ("Precision of the list", methods, lambda r: r["errors"]["precision"]),
        ("Recall of the list", methods, lambda r: r["errors"]["recall"]),
        ("Average precision", methods, lambda r: r["average_precision"]),
    ]
    for title, columns, value in tables:
        print(f"\n{title}\n\n| table | noise | seeds | {' | '.join(columns)} |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for key, of in rows.items():
            cells = [spread([value(r[name]) for r in of]) for name in columns]
            print(f"| {' | '.join((*key, str(len(of)), *cells))} |")
    pairs = [(own, other) for own in methods[:2] for other in methods[2:]]
    print("\nSeconds as a share of cleanlab's\n\n| table | noise | seeds |", end="")
    print("".join(f" {own} / {other} |" for own, other in pairs))
    print("|---|---|---:|---:|---:|---:|---:|")
    for key, of in rows.items():
        shares = [[r[own]["seconds"] / r[other]["seconds"] for r in of] for own, other in pairs]
        print(f"| {' | '.join((*key, str(len(of)), *map(spread, shares)))} |")


def spread(values: list[float]) -> str:
    """Return the median in percent, and the lowest and highest value."""
    low, middle, high = (100 * f(values) for f in (min, np.median, max))
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    """Run what is missing, then print the tables."""
    made = runs.parser(__doc__, seeds=1)
    made.add_argument("--only", choices=KINDS, help="one kind of table")
    made.add_argument("--search", action="store_true", help="also with a search of 12 trainings")
    args = made.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    kinds = [args.only] if args.only else list(KINDS)
    parts = ["all"] + ["search"] * args.search
    jobs: list[runs.Job] = [
        (kind, noise, seed, part)
        for part in parts for seed in seeds for noise in ("symmetric", "pair") for kind in kinds
    ]  # fmt: skip
    if not args.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=args.jobs, minutes=args.minutes)
    report(runs.read(RESULTS)["results"])


if __name__ == "__main__":
    main()
