"""Objectives whose least value, zero, is known: what `estimators.py` searches.

Settings were chosen on "tune" (`estimators.py` says more). Noise is added to what a sampler sees
only; the true value is kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import optuna

from optuna_s2e import ScheduleSpace, coteaching_schedule, suggest_simplex


def floats(trial: optuna.Trial, n: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Suggest n floats, (n,)."""
    return np.array([trial.suggest_float(f"x{i:02d}", low, high) for i in range(n)])


def noisy(trial: optuna.Trial, value: float, deviation: float) -> float:
    """Return the value with noise, keyed by the sampler's point; keep the true one."""
    trial.set_user_attr("true", value)
    rng = np.random.default_rng([zlib.crc32(repr(trial.params).encode()), trial.number])
    return value + deviation * float(rng.normal())


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


def few_of_twenty(trial: optuna.Trial) -> float:
    """Four of twenty coordinates matter, each differently."""
    x = floats(trial, 20)
    return float(
        3 * (x[2] - 0.4) ** 2 + (x[7] - 0.85) ** 2 + (x[11] - 0.2) ** 2 + abs(x[18] - 0.6) / 2
    )


def wide_bowl(trial: optuna.Trial) -> float:
    """A bowl in 25 coordinates."""
    return float(np.sum((floats(trial, 25) - np.linspace(0.2, 0.8, 25)) ** 2))


def ackley(n: int) -> Callable[[optuna.Trial], float]:
    """Return Ackley's function of n coordinates, off the centre."""

    def value(trial: optuna.Trial) -> float:
        x = floats(trial, n, -5, 5) - 1.3
        wells = np.exp(np.mean(np.cos(2 * np.pi * x)))
        return float(20 * (1 - np.exp(-0.2 * np.sqrt(np.mean(x**2)))) + np.e - wells)

    return value


def noisy_levy(trial: optuna.Trial) -> float:
    """Levy's function of four coordinates, and noise."""
    w = 1 + (floats(trial, 4, -8, 8) - 1) / 4
    middle = np.sum((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * w[:-1] + 1) ** 2))
    return noisy(trial, float(np.sin(np.pi * w[0]) ** 2 + middle + (w[-1] - 1) ** 2), 1.5)


def categories_and_floats(n_categories: int, n_floats: int) -> Callable[[optuna.Trial], float]:
    """Return categories of four, each with an effect of its own, and a bowl of floats."""
    effects = np.random.default_rng(5).exponential(size=(n_categories, 4))
    effects -= effects.min(axis=1, keepdims=True)

    def value(trial: optuna.Trial) -> float:
        chosen = [trial.suggest_categorical(f"c{i}", "abcd") for i in range(n_categories)]
        total = sum(row["abcd".index(c)] for row, c in zip(effects, chosen, strict=True))
        return float(total + 3 * np.sum((floats(trial, n_floats) - 0.3) ** 2))

    return value


def rotated_eight(trial: optuna.Trial) -> float:
    """A rotated ellipsoid in eight coordinates."""
    q = np.linalg.qr(np.random.default_rng(9).normal(size=(8, 8)))[0]
    return float(np.sum(np.geomspace(1, 50, 8) * (q @ (floats(trial, 8, -1, 1) + 0.25)) ** 2))


def branin_among_ten(trial: optuna.Trial) -> float:
    """Branin's function of two of ten coordinates, and noise."""
    x = floats(trial, 10)
    a, b = 15 * x[3] - 5, 15 * x[6]
    value = (b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6) ** 2
    return noisy(trial, float(value + 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 9.602113), 3.0)


def valley(trial: optuna.Trial) -> float:
    """A bent valley in three coordinates."""
    x = floats(trial, 3, -1.5, 1.5)
    bends = (x[1] - x[0] ** 2 + 0.3) ** 2 + (x[2] - np.sin(2 * x[0])) ** 2
    return float(10 * bends + (x[0] - 0.7) ** 2)


def integers(trial: optuna.Trial) -> float:
    """Six ints and two floats."""
    best = [3, 17, 10, 6, 12, 1]
    value = sum(abs(trial.suggest_int(f"n{i}", 0, 20) - b) for i, b in enumerate(best)) / 20
    x = floats(trial, 2)
    return float(value + (x[0] - 0.5) ** 2 + x[1])


def settings_of_a_net(trial: optuna.Trial) -> float:
    """Six settings of a training, two of which matter most, noisy."""
    rate = np.log10(trial.suggest_float("lr", 1e-6, 1, log=True))
    decay = np.log10(trial.suggest_float("weight_decay", 1e-8, 1e-1, log=True))
    value = 0.15 * (rate + 3) ** 2 + 0.01 * (decay + 4) ** 2
    value += 0.05 * (trial.suggest_float("momentum", 0, 1) - 0.9) ** 2
    value += 0.1 * (trial.suggest_categorical("optimizer", "abc") != "b")
    value += 0.02 * abs(trial.suggest_int("depth", 1, 10) - 4)
    value += 0.2 * (trial.suggest_float("dropout", 0, 0.9) - 0.25) ** 2
    return noisy(trial, float(value), 0.05 + 0.1 * float(value))


def rosenbrock_in_fifteen(trial: optuna.Trial) -> float:
    """Rosenbrock's bent valley in 15 coordinates."""
    x = floats(trial, 15, -2, 2)
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def ellipsoid_in_thirty(trial: optuna.Trial) -> float:
    """Thirty coordinates of growing weight."""
    x = floats(trial, 30, -1, 1) - np.linspace(-0.5, 0.5, 30)
    return float(np.sum(np.geomspace(1, 100, 30) * x**2))


def noisy_bowl_in_twenty(trial: optuna.Trial) -> float:
    """A bowl in 20 coordinates, and noise."""
    return noisy(trial, float(np.sum((floats(trial, 20) - 0.65) ** 2)), 0.3)


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


def levy_in_eighteen(trial: optuna.Trial) -> float:
    """Levy's function of 18 coordinates: waves in a valley."""
    w = 1 + (floats(trial, 18, -8, 8) - 1) / 4
    value = np.sin(np.pi * w[0]) ** 2 + (w[-1] - 1) ** 2 * (1 + np.sin(2 * np.pi * w[-1]) ** 2)
    return float(value + np.sum((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * w[:-1] + 1) ** 2)))


def zakharov(trial: optuna.Trial) -> float:
    """Zakharov's function of 16 coordinates: a narrow valley across all axes."""
    x = floats(trial, 16, -3, 3) - 0.7
    along = float(np.sum(0.5 * np.arange(1, 17) * x)) / 16
    return float(np.sum(x**2)) + along**2 + along**4


def half_of_twenty_four(trial: optuna.Trial) -> float:
    """Twelve of 24 coordinates matter, unequally, and noise."""
    x = floats(trial, 24)
    goal = np.random.default_rng(21).uniform(0.1, 0.9, 12)
    return noisy(trial, float(np.sum(np.geomspace(0.2, 5, 12) * (x[::2] - goal) ** 2)), 0.2)


def edges_of_twenty(trial: optuna.Trial) -> float:
    """The minimum of 20 coordinates lies on edges of the cube; neighbours act together."""
    x = floats(trial, 20)
    return float(np.sum(x[:10]) + np.sum(1 - x[10:]) + 2 * np.sum(x[:9] * x[1:10]))


def pipeline(trial: optuna.Trial) -> float:
    """Six categories, eight logarithmic floats and four ints, and noise."""
    value = 0.0
    for i in range(6):
        choice = trial.suggest_categorical(f"step{i}", ["none", "a", "b", "c"])
        value += 0.3 * (choice != ("a", "none", "c", "none", "b", "none")[i])
    for i in range(8):
        rate = np.log10(trial.suggest_float(f"rate{i}", 1e-6, 1.0, log=True))
        value += (0.02 + 0.02 * i) * (rate + 1.5 + 0.4 * i) ** 2
    for i in range(4):
        value += 0.05 * abs(trial.suggest_int(f"size{i}", 1, 12) - 3 - 2 * i)
    return noisy(trial, float(value), 0.1)


TASKS: dict[str, dict[str, Callable[[optuna.Trial], float]]] = {
    "tune": {
        "quadratic": quadratic,
        "active subset": active_subset,
        "multimodal": multimodal,
        "mixed": mixed,
        "few of twenty": few_of_twenty,
        "wide bowl": wide_bowl,
        "Ackley": ackley(6),
        "noisy Levy": noisy_levy,
        "categories and floats": categories_and_floats(8, 3),
        "rotated eight": rotated_eight,
        "Branin among ten": branin_among_ten,
        "valley": valley,
        "integers": integers,
        "settings of a net": settings_of_a_net,
        "Rosenbrock in fifteen": rosenbrock_in_fifteen,
        "Ackley in twenty": ackley(20),
        "ellipsoid in thirty": ellipsoid_in_thirty,
        "noisy bowl in twenty": noisy_bowl_in_twenty,
        "six categories and floats": categories_and_floats(6, 10),
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
    "many dimensions": {
        "Levy in eighteen": levy_in_eighteen,
        "Zakharov": zakharov,
        "half of 24, noisy": half_of_twenty_four,
        "edges of twenty": edges_of_twenty,
        "pipeline": pipeline,
    },
}
