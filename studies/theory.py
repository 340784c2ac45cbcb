"""Do the statements of the paper hold? Each of them on problems where J is known.

Question:  Proposition 1 (the Hessian), Assumptions 2 and 3, Equations 8 and 9 (the sign),
           Proposition 2 (the decrease per step), Theorem 1 (the rate): true as printed?
Problems:  studies/polynomials.py: f is a polynomial with minimum 0, so that J(theta), the mean of
           f under p_theta, its gradient and its Hessian are known exactly.
Measure:   beside each check; docs/theory.md says what came out.
Run:       python studies/theory.py                              (a minute of CPU; it resumes)
Read:      studies/results/theory.json, docs/images/theory.png, --report
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import runs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from polynomials import PROBLEMS, Array, Polynomial
from scipy.optimize import lsq_linear

from optuna_s2e.estimators import newton, resolve

RESULTS = Path(__file__).parent / "results" / "theory.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "theory.png"
POPULATIONS = [2, 6, 20, 60, 200, 1000, 5000, 30_000]  # K; the authors' scripts have 2 to 20
CHUNK = 1000  # draws whose Hessians are held at a time


def estimates(
    problem: Polynomial, theta: Array, k: int, rng: np.random.Generator, *, centred: bool
) -> tuple[Array, Array]:
    """Return Eq 7 and Proposition 1 from k draws of p_theta; centred: f less its mean."""
    d = problem.distribution
    X = d.sample(theta, rng, k)
    f = problem.losses(X)
    f = f - f.mean() if centred else f
    gradient, hessian = np.zeros(d.n_theta), np.zeros((d.n_theta, d.n_theta))
    for i in range(0, k, CHUNK):
        x, y, w = X[i : i + CHUNK], f[i : i + CHUNK], np.ones(len(X[i : i + CHUNK]))
        scores = d.score(theta, x)
        gradient += len(x) / k * newton.gradient_estimate(y, scores, w)
        hessian += len(x) / k * newton.hessian_estimate(y, scores, d.hessian(theta, x), w)
    return gradient, hessian


def random_theta(rng: np.random.Generator, n: int, high: float) -> Array:
    """Return theta log-uniform in [1, high]."""
    return np.exp(rng.uniform(0.0, np.log(high), n))


# Checks: each takes a problem and a number of repeats, and returns JSON


def proposition_1(problem: Polynomial, n: int) -> dict[str, float]:
    r"""Compare Eq 7 and Proposition 1 with the truth.

    :math:`\nabla^2 J = E[f (s s^T + \nabla^2 \log p)]`. n batches of 1,000 draws at a
    theta of [1, 5]; largest error of a component in standard errors, with and without the
    second term.
    """
    rng = np.random.default_rng(1)
    d, theta = problem.distribution, random_theta(rng, problem.distribution.n_theta, 5.0)
    gradients, hessians, outer = [], [], []
    for _ in range(n):
        X = d.sample(theta, rng, CHUNK)
        f, s, w = problem.losses(X), d.score(theta, X), np.ones(CHUNK)
        gradients.append(newton.gradient_estimate(f, s, w))
        hessians.append(newton.hessian_estimate(f, s, d.hessian(theta, X), w))
        outer.append((f[:, None] * s).T @ s / CHUNK)

    def worst(samples: list[Array], truth: Array) -> float:
        error = np.std(samples, axis=0, ddof=1) / np.sqrt(n)
        return float(np.abs((np.mean(samples, axis=0) - truth) / error).max())

    truth = problem.hessian(theta)
    return {
        "gradient": worst(gradients, problem.gradient(theta)),
        "hessian": worst(hessians, truth),
        "without": worst(outer, truth),
    }


def spectrum(matrix: Array, whitening: Array) -> list[float]:
    """Return the shares of positive and of negative eigenvalues in Fisher-whitened coordinates."""
    eigenvalues = np.linalg.eigvalsh(whitening.T @ matrix @ whitening)
    null = 1e-9 * np.abs(eigenvalues).max()
    return [float(np.mean(eigenvalues > null)), float(np.mean(eigenvalues < -null))]


def definiteness(problem: Polynomial, n: int) -> dict[str, Any]:
    """Return the signs of the eigenvalues of sampled Hessians at theta = 1, by K, and their error.

    Per K, for f as it is and centred: mean shares of positive and negative eigenvalues, the share
    of positive definite Hessians, and the median of |estimate - Hessian| / |Hessian|
    (Frobenius, whitened).
    """
    theta = problem.distribution.uniform_theta()
    truth, whitening = problem.hessian(theta), newton.whiten(problem.distribution.fisher(theta))
    size = np.linalg.norm(whitening.T @ truth @ whitening)
    found: dict[str, Any] = {"exact": spectrum(truth, whitening)}
    for name, centred in (("raw", False), ("centred", True)):
        rng, found[name] = np.random.default_rng(2), {}
        for k in POPULATIONS:
            rows = []
            for _ in range(max(2, n * CHUNK // max(k, CHUNK))):
                _, h = estimates(problem, theta, k, rng, centred=centred)
                off = np.linalg.norm(whitening.T @ (h - truth) @ whitening) / size
                rows.append([*spectrum(h, whitening), off])
            up, down, off = np.array(rows).T
            definite = float(np.mean(up == 1.0))
            found[name][str(k)] = [up.mean(), down.mean(), definite, float(np.median(off))]
    return found


def assumption_3(problem: Polynomial, n: int) -> dict[str, float]:
    """Return how often the exact Hessian is positive definite, at 10 n thetas of [1, 100]."""
    rng, n_theta = np.random.default_rng(3), problem.distribution.n_theta
    thetas = [random_theta(rng, n_theta, 100.0) for _ in range(10 * n)]
    lowest = [np.linalg.eigvalsh(problem.hessian(theta)) for theta in thetas]
    share = np.mean([e > 0.0 for e in lowest])
    return {"positive": float(share), "definite": float(np.mean([e[0] > 0.0 for e in lowest]))}


RAYS, SCALES = [1e1, 1e3, 1e5], [1.0, 0.1, 0.01]


def assumption_2(problem: Polynomial, n: int) -> dict[str, list[float]]:
    """Return J and |gradient| along theta = r w*, where f(w*) = 0, and |Hessian| at theta = t."""
    far = [problem.best * r for r in RAYS]
    near = [np.full(len(problem.best), t) for t in SCALES]
    return {
        "J": [problem.J(theta) for theta in far],
        "gradient": [float(np.linalg.norm(problem.gradient(theta))) for theta in far],
        "hessian": [float(np.linalg.norm(problem.hessian(theta), 2)) for theta in near],
    }


NEWTON, CUBIC = resolve({"estimator": "newton"}), resolve({"estimator": "cubic"})
Rule = Callable[[Array, Array, Array], Array]
RULES: dict[str, tuple[bool, Rule]] = {
    "Eq 8 as printed, +H^-1 g": (False, lambda g, H, F: np.linalg.solve(H, g)),
    "Eq 9, -H^-1 g": (False, lambda g, H, F: -np.linalg.solve(H, g)),
    "Newton, eigenvalues in [eta, L]": (
        True, lambda g, H, F: newton.newton_direction(g, H, F, NEWTON)),
    "cubic": (True, lambda g, H, F: newton.cubic_direction(g, H, F, CUBIC)),
    "gradient": (True, lambda g, H, F: -g),
}  # fmt: skip
"""Name -> whether f is standardised, and the direction."""


def signs(problem: Polynomial, n: int) -> dict[str, Any]:
    """Return the share of n thetas of [1, 5] at which a direction goes downhill, by rule and K.

    Downhill: its product with the exact gradient is negative. "towards": with K = 1 the step of
    Eq 8 is F^-1 s / (s'F^-1 s - 1), whatever the loss; how often it goes towards the draw.
    """
    rng, d = np.random.default_rng(4), problem.distribution
    found: dict[str, dict[str, list[bool]]] = {rule: {} for rule in RULES}
    towards = []
    for theta in (random_theta(rng, d.n_theta, 5.0) for _ in range(n)):
        slope, fisher, X = problem.gradient(theta), d.fisher(theta), d.sample(theta, rng, CHUNK)
        deviation, s = problem.losses(X).std(), d.score(theta, X[:1])[0]
        towards.append(s @ np.linalg.solve(fisher, s) > 1.0)
        exact = slope, problem.hessian(theta)
        for k in (6, 60, 600, None):
            raw, centred = (
                exact if k is None else estimates(problem, theta, k, rng, centred=c)
                for c in (False, True)
            )
            for rule, (standardised, direction) in RULES.items():
                g, H = (e / deviation for e in centred) if standardised else raw
                downhill = direction(g, H, fisher) @ slope < 0.0
                found[rule].setdefault(str(k or "exact"), []).append(bool(downhill))
    shares = {
        rule: {k: float(np.mean(results)) for k, results in by_k.items()}
        for rule, by_k in found.items()
    }
    return {"towards": float(np.mean(towards)), **shares}


# Proposition 2 and Theorem 1


def lipschitz(problem: Polynomial, n: int = 2000) -> float:
    """Return L: the largest norm of the Hessian found in theta >= 1, half of it on its faces."""
    rng, best = np.random.default_rng(5), np.linalg.norm(problem.hessian(problem.best**0), 2)
    for _ in range(n):
        theta = random_theta(rng, len(problem.best), 100.0)
        theta[rng.random(len(theta)) < 0.5] = 1.0
        best = max(best, np.linalg.norm(problem.hessian(theta), 2))
    return float(best)


class Descent:
    r"""theta_{m+1} = argmin over theta >= 1 of g.d + d'Bd/2, from theta = 1.

    B is the Hessian with its eigenvalues brought into [least, max(least, L)]. In the interior
    this is Eq 9. On the faces it keeps what the proof of Proposition 2 uses, g.d <= -d'Bd.

    Args:
        problem: What J is.
        L: Lipschitz constant of its gradient.
        least: Lower bound of the eigenvalues of B.
        n_steps: M.
        estimate: theta -> gradient and Hessian; by default the exact ones.
    """

    def __init__(
        self,
        problem: Polynomial,
        L: float,
        least: float,
        n_steps: int,
        estimate: Callable[[Array], tuple[Array, Array]] | None = None,
    ) -> None:
        theta = problem.distribution.uniform_theta()
        J, lengths, errors, slopes = [problem.J(theta)], [], [], []
        for _ in range(n_steps):
            slope = problem.gradient(theta)
            g, H = estimate(theta) if estimate else (slope, problem.hessian(theta))
            values, axes = np.linalg.eigh(H)
            root = axes * np.sqrt(np.clip(values, least, max(least, L)))  # B = root root'
            target = -np.linalg.solve(root, g)
            step = lsq_linear(root.T, target, (1.0 - theta, np.inf), method="bvls").x
            theta = np.maximum(theta + step, 1.0)
            J.append(problem.J(theta))
            lengths.append(np.linalg.norm(step))
            errors.append(np.linalg.norm(g - slope))
            slopes.append(np.linalg.norm(slope))
        self.theta = theta
        self.J, self.lengths, self.errors = np.array(J), np.array(lengths), np.array(errors)
        self.slopes = np.array(slopes)

    def slack(self, decrease: float, *, with_errors: bool = False) -> Array:
        """Return J_m - decrease |d|^2 (+ |e| |d|) - J_{m+1}, (M,): >= 0 where it holds."""
        allowed = self.errors * self.lengths if with_errors else 0.0
        return -np.diff(self.J) - decrease * self.lengths**2 + allowed


ROUNDING = 1e-13  # of J, which is at most 1
ETAS = [0.1, 0.5, 0.9, 1.0, 2.0, 4.0]  # all below 2 / L, as the factor of the decrease needs


def proposition_2(problem: Polynomial, n: int) -> dict[str, Any]:
    r"""Check :math:`J(\theta_{m+1}) \le J(\theta_m) - \frac{2 - L\eta}{2\eta} |d|^2`.

    Exact estimates, n steps. "corrected": eigenvalues of B >= 1 / eta; "printed": >= eta, as in
    Assumption 3. Per eta: the share of the steps at which it fails. "rises": that at which J does.
    """
    L = lipschitz(problem)
    found: dict[str, list[float]] = {"printed": [], "corrected": [], "rises": []}
    for eta in ETAS:
        for name, least in (("printed", eta), ("corrected", 1 / eta)):
            run = Descent(problem, L, least, n)
            found[name].append(float(np.mean(run.slack(1 / eta - L / 2) < -ROUNDING)))
            found["rises"].append(float(np.mean(np.diff(run.J) > ROUNDING)))
    return {"L": L, **found}


def theorem_1(problem: Polynomial, n: int) -> dict[str, Any]:
    r"""Compare :math:`\min_{m \le M} |d_m|^2` with its bound.

    The sum of Proposition 2 over M steps: :math:`\frac{2\eta}{2 - L\eta} (J_1 - \inf J) / M`,
    inf J = min f = 0, eta = 1.8 / L. Exact estimates, 10 n steps; then, from K draws each (f
    centred), 100 steps of n / 20 runs: the shares of the steps at which Proposition 2 fails and
    at which J rises, the same for the inequality with the error of the gradient, |e| / |gradient|
    (median), and the last J over the first.
    """
    L = lipschitz(problem)
    eta = 1.8 / L
    decrease = 1 / eta - L / 2
    run = Descent(problem, L, 1 / eta, 10 * n)
    steps = np.unique(np.geomspace(1, 10 * n, 40).astype(int))
    shortest = np.minimum.accumulate(run.lengths**2)[steps - 1]
    found: dict[str, Any] = {
        "M": steps.tolist(),
        "observed": shortest.tolist(),
        "bound": (run.J[0] / decrease / steps).tolist(),
        "J": [float(run.J[0]), float(run.J[-1])],
        "theta": float(np.linalg.norm(run.theta)),
        "sampled": {},
    }
    for k in (6, 60, 600):
        rows = []
        for seed in range(max(1, n // 20)):
            rng = np.random.default_rng([6, seed])
            noisy = Descent(
                problem, L, 1 / eta, 100,
                lambda theta, k=k, rng=rng: estimates(problem, theta, k, rng, centred=True),
            )  # fmt: skip
            fails = noisy.slack(decrease) < -ROUNDING
            excused = noisy.slack(decrease, with_errors=True) < -ROUNDING
            error = np.median(noisy.errors / noisy.slopes)
            rises = np.diff(noisy.J) > ROUNDING
            last = noisy.J[-1] / noisy.J[0]
            rows.append([fails.mean(), rises.mean(), excused.mean(), error, last])
        found["sampled"][str(k)] = np.mean(rows, axis=0).tolist()
    return found


CHECKS: dict[str, Callable[[Polynomial, int], dict[str, Any]]] = {
    "proposition 1": proposition_1,
    "assumption 2": assumption_2,
    "definiteness": definiteness,
    "assumption 3": assumption_3,
    "signs": signs,
    "proposition 2": proposition_2,
    "theorem 1": theorem_1,
}


def run(job: runs.Job) -> dict[str, Any]:
    """Do one check on one problem."""
    check, problem, n = job
    return CHECKS[str(check)](PROBLEMS[str(problem)], int(n))


# Report


def table(title: str, header: list[str], rows: list[list[Any]]) -> None:
    """Print numbers to three digits; a row may be short."""
    cells = [header] + [[c if isinstance(c, str) else f"{c:.3g}" for c in row] for row in rows]
    cells = [row + [""] * (len(header) - len(row)) for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for row in cells:
        padded = [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *padded]))


def report(found: dict[str, dict[str, Any]]) -> None:
    """Print a table per statement; found[check][problem]."""
    table(
        "Proposition 1: largest error of a component, in standard errors",
        ["", "Eq 7", "Proposition 1", "without Hessian of log p"],
        [[p, *r.values()] for p, r in found["proposition 1"].items()],
    )
    table(
        "Assumption 2: J and |gradient| at theta = r w*; |Hessian| at theta = t",
        ["", *(f"{x}, r = {r}" for x in ("J", "g") for r in RAYS), *(f"t = {t}" for t in SCALES)],
        [[p, *r["J"], *r["gradient"], *r["hessian"]] for p, r in found["assumption 2"].items()],
    )
    for row, title in enumerate(["share of eigenvalues > 0", "share of eigenvalues < 0",
                                 "share positive definite", "error / size"]):  # fmt: skip
        table(
            f"Sampled Hessians at theta = 1, by K: {title}",
            ["", *map(str, POPULATIONS), "exact"],
            [
                [f"{p}, f {name}", *(v[row] for v in r[name].values()), *r["exact"][row : row + 1]]
                for p, r in found["definiteness"].items()
                for name in ("raw", "centred")
            ],
        )
    table(
        "Assumption 3: exact Hessians at thetas of [1, 100]",
        ["", "share of eigenvalues > 0", "share positive definite"],
        [[p, *r.values()] for p, r in found["assumption 3"].items()],
    )
    for p, r in found["signs"].items():
        table(
            f"Downhill, {p} (K = 1, Eq 8: towards the draw {r['towards']:.3g})",
            ["", *r["gradient"]],
            [[rule, *r[rule].values()] for rule in RULES],
        )
    for name in ("printed", "corrected"):
        table(
            f"Proposition 2, {name}: share of the steps at which it fails, by eta",
            ["", "L", *map(str, ETAS), "J rises"],
            [[p, r["L"], *r[name], max(r["rises"])] for p, r in found["proposition 2"].items()],
        )
    table(
        "Theorem 1: least |d|^2, its bound, first and last J, last |theta|",
        ["", "M", "observed", "bound", "J first", "J last", "|theta|"],
        [
            [p, str(r["M"][-1]), r["observed"][-1], r["bound"][-1], *r["J"], r["theta"]]
            for p, r in found["theorem 1"].items()
        ],
    )
    table(
        "The same rule with K draws, 100 steps",
        ["", "K", "fails", "J rises", "fails, error allowed", "|e| / |gradient|", "J last/first"],
        [[p, k, *row] for p, r in found["theorem 1"].items() for k, row in r["sampled"].items()],
    )


def picture(found: dict[str, dict[str, Any]]) -> Figure:
    """Draw the signs and the errors of sampled Hessians by K, and Theorem 1 against its bound."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    share, error, rate = figure.subplots(1, 3)
    shown = ["three numbers", "paper's space"]
    for color, p in zip(("tab:blue", "tab:orange"), shown, strict=True):
        r, n_theta = found["definiteness"][p], len(PROBLEMS[p].best)
        for name, style in (("raw", "o-"), ("centred", "s--")):
            ks, rows = [int(k) for k in r[name]], list(r[name].values())
            label = f"{n_theta} thetas, f {'centred' if name == 'centred' else 'as it is'}"
            share.plot(ks, [row[0] for row in rows], style, color=color, ms=4, label=label)
            error.plot(ks, [row[3] for row in rows], style, color=color, ms=4, label=label)
        share.axhline(r["exact"][0], color=color, lw=0.8, ls=":")
    share.axhline(1.0, color="black", lw=0.8)
    share.set(xscale="log", ylim=(0, 1.05), xlabel="K", title="positive eigenvalues")
    share.set_ylabel("share (dotted: exact; 1: Assumption 3)")
    error.axhline(1.0, color="black", lw=0.8)
    error.set(xscale="log", yscale="log", xlabel="K", title="error of the sampled Hessian")
    error.set_ylabel("|estimate - Hessian| / |Hessian|")
    error.legend(fontsize=8)
    for color, p in zip(("tab:green", "tab:blue", "tab:orange"), ["slope", *shown], strict=True):
        r = found["theorem 1"][p]
        rate.plot(r["M"], r["bound"], "--", color=color)
        rate.plot(r["M"], r["observed"], color=color, label=p)
    rate.set(xscale="log", yscale="log", xlabel="M", title="Theorem 1, exact estimates")
    rate.set_ylabel("least squared step (dashed: its bound)")
    rate.legend(fontsize=8)
    return figure


def main() -> None:
    """Run what is missing, print the tables, draw the picture."""
    args = runs.parser(__doc__, seeds=100).parse_args()
    jobs = [(check, problem, args.seeds) for check in CHECKS for problem in PROBLEMS]
    if not args.report:
        runs.run_missing(RESULTS, jobs, run, n_processes=args.jobs, minutes=args.minutes)
    results = runs.read(RESULTS)["results"]
    found = {c: {p: results[runs.key_of((c, p, args.seeds))] for p in PROBLEMS} for c in CHECKS}
    report(found)
    picture(found).savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
