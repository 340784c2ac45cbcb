"""Which estimator should be S2ESampler's default? Every estimator, random search, TPE, CMA-ES.

Question:  at 60 trials, which update rule leaves the best trials and the best last generation?
Tasks:     "tune" are those that the default was chosen on; "held out" were never run before the
           choice, with other seeds. Schedule tasks: distance (RMSE over 200 epochs) of R(t) to a
           target schedule, in Co-teaching's space and in the paper's. "noisy or large" were first
           run after the exploration of the surrogate-assisted estimator had been changed for the
           sake of noise; they include branches, which S2E does not model.
Measure:   value without noise of the trial that looked best, and its mean over the last 12 trials;
           both above the least possible value, as the ratio to random search on the same task
           (geometric mean over the tasks; 95 % interval by bootstrap over seeds).
Run:       python studies/estimators.py --seeds 20 --jobs 2       (results are kept: it resumes)
Read:      studies/results/estimators.json, python studies/estimators.py --report
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import runs

from optuna_s2e import S2ESampler, ScheduleSpace, coteaching_schedule, suggest_simplex

RESULTS = Path(__file__).parent / "results" / "estimators.json"
N_TRIALS, N_LAST = 60, 12
LEAST_RATIO = 1e-3  # a task that is solved exactly counts as this
FIRST_SEED = {"tune": 1000, "held out": 5000, "noisy or large": 9000,
              "conditional": 12_000}  # fmt: skip

ALGORITHMS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "TPE (5.0 default)": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "CMA-ES (popsize 6)": lambda seed: optuna.samplers.CmaEsSampler(seed=seed, popsize=6),
    "newton, memoryless (paper)": lambda seed: S2ESampler(seed=seed, estimator="newton", reuse=0),
    "newton": lambda seed: S2ESampler(seed=seed, estimator="newton"),
    "gradient": lambda seed: S2ESampler(seed=seed, estimator="gradient"),
    "cubic": lambda seed: S2ESampler(seed=seed, estimator="cubic"),
    "natural, memoryless": lambda seed: S2ESampler(seed=seed, estimator="natural", reuse=0),
    "natural, step 1": lambda seed: S2ESampler(seed=seed, estimator="natural", step_size=1.0),
    "natural": lambda seed: S2ESampler(seed=seed, estimator="natural"),
    "surrogate": lambda seed: S2ESampler(seed=seed, estimator="surrogate"),
}


def quadratic(trial: optuna.Trial) -> float:
    """Three coordinates."""
    return sum(
        (trial.suggest_float(f"x{i}", 0, 1) - c) ** 2 for i, c in enumerate([0.15, 0.5, 0.8])
    )


def active_subset(trial: optuna.Trial) -> float:
    """Three of ten coordinates matter."""
    x = [trial.suggest_float(f"x{i:02d}", 0, 1) for i in range(10)]
    return (x[1] - 0.2) ** 2 + 2 * (x[4] - 0.7) ** 2 + (x[7] - 0.9) ** 2


def multimodal(trial: optuna.Trial) -> float:
    """Rastrigin, six periods."""
    d = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(3)]) - 0.3
    return float(np.sum(d**2 + 0.1 * (1 - np.cos(12 * np.pi * d))))


def mixed(trial: optuna.Trial) -> float:
    """A simplex, a log float, an int and a category."""
    w = suggest_simplex(trial, "w", 3)
    value = abs(np.log10(trial.suggest_float("lr", 1e-4, 1, log=True)) + 2.5) / 2
    value += 0.1 * abs(trial.suggest_int("depth", 1, 8) - 3) + abs(w[0] - 0.6)
    return float(value + 0.5 * (trial.suggest_categorical("act", ["r", "t", "g"]) != "t"))


def rosenbrock(trial: optuna.Trial) -> float:
    """A bent valley in four dimensions."""
    x = np.array([trial.suggest_float(f"x{i}", -2, 2) for i in range(4)])
    return float(np.sum((x[1:] - x[:-1] ** 2) ** 2 + 0.1 * (1 - x[:-1]) ** 2))


def rotated_ellipsoid(trial: optuna.Trial) -> float:
    """Six coordinates that p_theta, a product, cannot rotate."""
    x = np.array([trial.suggest_float(f"x{i}", -1, 1) for i in range(6)])
    q = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    return float(np.sum(np.array([1, 2, 4, 8, 16, 32]) * (q @ (x - 0.35)) ** 2))


def categories(trial: optuna.Trial) -> float:
    """Five categories of five choices, one right each, and two ints."""
    wrong = sum(trial.suggest_categorical(f"c{i}", "abcde") != "abcde"[i] for i in range(5))
    return wrong + 0.02 * sum(abs(trial.suggest_int(f"n{i}", 0, 40) - 10 - i) for i in range(2))


def corner(trial: optuna.Trial) -> float:
    """The minimum sits in a corner, along a logarithmic axis as well."""
    x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(4)]
    return float(sum(x) + abs(np.log10(trial.suggest_float("lr", 1e-6, 1, log=True)) + 6) / 3)


def schedule_fit(kind: str, tau: float, tk: float, c: float) -> Callable[[optuna.Trial], float]:
    """Return the distance of a drawn schedule to one of Eq 1, 200 epochs."""
    space, target = ScheduleSpace(200, kind), coteaching_schedule(200, tau, tk, c).keep_rates

    def objective(trial: optuna.Trial) -> float:
        return float(np.sqrt(np.mean((space.suggest(trial).keep_rates - target) ** 2)))

    return objective


def noisy(trial: optuna.Trial, value: float, deviation: float) -> float:
    """Return the value with noise, keyed by the sampler's point; keep the true one."""
    trial.set_user_attr("true", value)
    rng = np.random.default_rng([zlib.crc32(repr(trial.params).encode()), trial.number])
    return value + deviation * float(rng.normal())


def noisy_hartmann(trial: optuna.Trial) -> float:
    """Hartmann's function of three coordinates; a fifth of its range is noise."""
    x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(3)])
    a = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
    p = [[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]
    wells = np.exp(-np.sum(a * (x - 1e-4 * np.array(p)) ** 2, axis=1))
    return noisy(trial, 3.86278 - float(np.dot([1, 1.2, 3, 3.2], wells)), 0.7)


def noisy_styblinski_tang(trial: optuna.Trial) -> float:
    """32 local minima in five coordinates, and noise."""
    x = np.array([trial.suggest_float(f"x{i}", -5, 5) for i in range(5)])
    return noisy(trial, float(np.sum(x**4 - 16 * x**2 + 5 * x) / 2 + 5 * 39.16617), 20.0)


def mostly_noise(trial: optuna.Trial) -> float:
    """A slope in four coordinates under noise of four times its deviation."""
    x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(4)]
    return noisy(trial, float(np.sum(x)), 2.3)


def noisy_training(trial: optuna.Trial) -> float:
    """An optimiser, its learning rate, a width and a dropout; bad points are noisier."""
    name = trial.suggest_categorical("optimizer", ["sgd", "adam", "rmsprop", "lion"])
    rate = np.log10(trial.suggest_float("lr", 1e-6, 1, log=True))
    best = {"sgd": -1.0, "adam": -3.0, "rmsprop": -3.5, "lion": -4.0}[name]
    value = 0.1 * (rate - best) ** 2 + 0.05 * (name != "adam")
    value += 0.1 * abs(np.log2(trial.suggest_int("width", 8, 1024, log=True)) - 8) / 4
    value += (trial.suggest_float("dropout", 0, 0.9, step=0.1) - 0.3) ** 2
    return noisy(trial, float(value), 0.05 + 0.2 * float(value))


def sparse(trial: optuna.Trial) -> float:
    """Three of thirty coordinates matter."""
    x = [trial.suggest_float(f"x{i:02d}", 0, 1) for i in range(30)]
    return (x[3] - 0.3) ** 2 + (x[14] - 0.75) ** 2 + (x[25] - 0.1) ** 2


def forty(trial: optuna.Trial) -> float:
    """A bowl in forty coordinates."""
    return sum((trial.suggest_float(f"x{i:02d}", 0, 1) - 0.3 - 0.01 * i) ** 2 for i in range(40))


def many_categories(trial: optuna.Trial) -> float:
    """Twelve categories of six choices, each with an effect of its own."""
    effects = np.random.default_rng(12).exponential(size=(12, 6))
    effects -= effects.min(axis=1, keepdims=True)
    chosen = [trial.suggest_categorical(f"c{i:02d}", "abcdef") for i in range(12)]
    return float(sum(row["abcdef".index(c)] for row, c in zip(effects, chosen, strict=True)))


def cliff(trial: optuna.Trial) -> float:
    """A tenth of the cube returns a million."""
    x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(4)])
    return 1e6 if x[0] + x[1] < 0.45 else float(np.sum((x - [0.35, 0.25, 0.6, 0.9]) ** 2))


def branches(trial: optuna.Trial) -> float:
    """Two branches with parameters of their own; the better one looks worse at first."""
    if trial.suggest_categorical("model", ["linear", "tree"]) == "linear":
        return 0.25 + (trial.suggest_float("penalty", 0, 1) - 0.3) ** 2
    depth, rate = trial.suggest_int("depth", 1, 12), trial.suggest_float("rate", 1e-4, 1, log=True)
    return ((depth - 7) / 12) ** 2 + (np.log10(rate) + 1.5) ** 2 / 4


def layers(trial: optuna.Trial) -> float:
    """One to four layers, each with a width of its own; three are best."""
    n = trial.suggest_int("n_layers", 1, 4)
    widths = [trial.suggest_int(f"width{i}", 8, 512, log=True) for i in range(n)]
    rate = np.log10(trial.suggest_float("lr", 1e-5, 1e-1, log=True))
    tuning = sum(abs(np.log2(w) - (8 - i)) for i, w in enumerate(widths)) / (6 * n)
    return float(0.1 * (n - 3) ** 2 + tuning + 0.2 * (rate + 2.5) ** 2)


def kernels(trial: optuna.Trial) -> float:
    """A support vector machine: what is shared, what two kernels share, what one has; noisy."""
    kernel = trial.suggest_categorical("kernel", ["linear", "poly", "rbf", "sigmoid"])
    c = np.log10(trial.suggest_float("C", 1e-3, 1e3, log=True))
    value = 0.05 * (c - 1) ** 2 + {"linear": 0.3, "poly": 0.1, "rbf": 0.0, "sigmoid": 0.4}[kernel]
    if kernel in ("poly", "rbf"):
        gamma = np.log10(trial.suggest_float("gamma", 1e-5, 1e1, log=True))
        value += 0.1 * (gamma + 2) ** 2
    if kernel == "poly":
        value += 0.1 * abs(trial.suggest_int("degree", 2, 6) - 3)
    return noisy(trial, float(value), 0.05)


def nested(trial: optuna.Trial) -> float:
    """A branch inside a branch."""
    if trial.suggest_categorical("model", ["net", "boosting"]) == "net":
        return 0.1 + (np.log10(trial.suggest_float("rate", 1e-5, 1, log=True)) + 3) ** 2 / 8
    depth, value = trial.suggest_int("depth", 2, 12), 0.0
    if trial.suggest_categorical("booster", ["plain", "dart"]) == "dart":
        value = (trial.suggest_float("drop", 0, 1) - 0.2) ** 2
        value += (trial.suggest_float("skip", 0, 1) - 0.6) ** 2
    else:
        value = 0.05 + (trial.suggest_float("shrink", 0, 1) - 0.1) ** 2
    return float(value + abs(depth - 6) / 20)


def five_branches(trial: optuna.Trial) -> float:
    """Two numbers to tune in each of five branches: the first draws do not see all."""
    branch = trial.suggest_categorical("branch", "abcde")
    i = "abcde".index(branch)
    x, y = (trial.suggest_float(f"{name}{branch}", 0, 1) for name in "xy")
    return 0.02 * i + (x - 0.15 * i) ** 2 + (1 + i) * (y - 0.8) ** 2


TASKS: dict[str, dict[str, Callable[[optuna.Trial], float]]] = {
    "tune": {
        "quadratic": quadratic,
        "active subset": active_subset,
        "multimodal": multimodal,
        "mixed": mixed,
    },
    "held out": {
        "rosenbrock": rosenbrock,
        "rotated ellipsoid": rotated_ellipsoid,
        "categories": categories,
        "corner": corner,
        "schedule, eq1 space": schedule_fit("eq1", 0.5, 10, 1),
        "schedule, table1 space": schedule_fit("table1", 0.5, 10, 1),
        "late schedule, table1 space": schedule_fit("table1", 0.6, 80, 2),
    },
    "noisy or large": {
        "noisy Hartmann": noisy_hartmann,
        "noisy Styblinski-Tang": noisy_styblinski_tang,
        "mostly noise": mostly_noise,
        "noisy training": noisy_training,
        "sparse": sparse,
        "forty": forty,
        "many categories": many_categories,
        "cliff": cliff,
        "branches": branches,
    },
    "conditional": {
        "layers": layers,
        "kernels": kernels,
        "nested": nested,
        "five branches": five_branches,
    },
}


def run(job: runs.Job) -> list[float]:
    """Search one task with one algorithm and one seed.

    Returns:
        The true value of the best trial, followed by the mean true values of each 12 trials.
    """
    part, task, algorithm, seed = str(job[0]), str(job[1]), str(job[2]), int(job[3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=ALGORITHMS[algorithm](FIRST_SEED[part] + seed))
        study.optimize(TASKS[part][task], n_trials=N_TRIALS)
    found = np.array([t.user_attrs.get("true", t.value) for t in study.trials])
    means = found.reshape(-1, N_LAST).mean(axis=1)
    return [float(f"{v:.5g}") for v in (found[study.best_trial.number], *means)]


def summarise(values: runs.Results, part: str, n: int) -> list[str]:
    """Return a table: ratios to random search of best and last, with 95 % intervals."""
    rng, seeds = np.random.default_rng(0), range(n)

    def scores(algorithm: str) -> np.ndarray:  # (tasks, seeds, 2)
        rows = [[values[f"{part}|{t}|{algorithm}|{s}"] for s in seeds] for t in TASKS[part]]
        return np.array(rows)[:, :, [0, -1]]

    def ratio(own: np.ndarray, base: np.ndarray) -> np.ndarray:
        ratios = own.mean(axis=1) / base.mean(axis=1)
        return np.exp(np.mean(np.log(np.maximum(ratios, LEAST_RATIO)), axis=0))

    if any(f"{part}|{t}|random|{s}" not in values for t in TASKS[part] for s in seeds):
        return [f"{part}: not run yet"]
    base = scores("random")
    lines = [f"{part}: {len(TASKS[part])} tasks, {len(seeds)} seeds, {N_TRIALS} trials; ratio to "
             "random search (1 = random, lower is better), 95 % interval",
             f"{'':28}{'best trial':>22}{'last 12 trials':>24}"]  # fmt: skip
    for algorithm in ALGORITHMS:
        if any(f"{part}|{t}|{algorithm}|{s}" not in values for t in TASKS[part] for s in seeds):
            continue  # not run yet
        own = scores(algorithm)
        samples = []
        for _ in range(1000):
            i = rng.integers(0, len(seeds), len(seeds))
            samples.append(ratio(own[:, i], base[:, i]))
        low, high = np.percentile(samples, [2.5, 97.5], axis=0)
        cells = [f"{m:.3f} [{a:.3f}, {b:.3f}]"
                 for m, a, b in zip(ratio(own, base), low, high, strict=True)]  # fmt: skip
        lines.append(f"{algorithm:28}{cells[0]:>22}{cells[1]:>24}")
    return lines


def by_task(values: runs.Results, part: str, n: int) -> list[str]:
    """Return a table: ratio to random search of the best trial, task by task."""
    names = ["TPE (5.0 default)", "CMA-ES (popsize 6)", "natural", "surrogate"]
    lines = [f"{part}: best trial, ratio to random search of the means over {n} seeds",
             f"{'':30}" + "".join(f"{name:>20}" for name in names)]  # fmt: skip
    for task in TASKS[part]:
        rows = {a: [values.get(f"{part}|{task}|{a}|{s}") for s in range(n)]
                for a in ("random", *names)}  # fmt: skip
        if any(row is None for found in rows.values() for row in found):
            continue
        mean = {a: np.mean([row[0] for row in found if row]) for a, found in rows.items()}
        lines.append(f"{task:30}" + "".join(f"{mean[a] / mean['random']:20.3f}" for a in names))
    return lines


def main() -> None:
    """Run what is missing, save, report."""
    options = runs.parser(__doc__, seeds=20).parse_args()
    jobs: list[runs.Job] = [
        (part, task, algorithm, seed)
        for part, tasks in TASKS.items()
        for task in tasks
        for seed in range(options.seeds)
        for algorithm in ALGORITHMS
    ]
    if not options.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=options.jobs, minutes=options.minutes)
    values = runs.read(RESULTS)["results"]
    for part in TASKS:
        print("\n".join(summarise(values, part, options.seeds)), end="\n\n")
        print("\n".join(by_task(values, part, options.seeds)), end="\n\n")


if __name__ == "__main__":
    main()
