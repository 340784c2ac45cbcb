"""Make the picture of docs/how-it-works.md: a search, its model and its theta, from a storage.

    python docs/method_picture.py STORAGE    (of the search of `make demo`, with --trials 60)

Needs the test extra (matplotlib).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from optuna_s2e import Schedule, generations, recommend
from optuna_s2e.distributions import SearchSpace
from optuna_s2e.history import read_tags
from optuna_s2e.surrogate import Model

OUT = Path(__file__).parent / "images" / "method.png"
EARLY = 5  # epoch

Array = npt.NDArray[np.float64]


def draws(space: SearchSpace, theta: Array, n: int) -> Array:
    """Return the coordinates of n draws of p_theta."""
    points = space.distribution.sample(theta, np.random.default_rng(0), n)
    return space.coordinates(points)


def at_two_epochs(space: SearchSpace, x: Array) -> tuple[Array, Array]:
    """Return R at an early epoch and at the end, of draws x."""
    rates = np.array([Schedule.from_params(space.decode(v) | space.tags).keep_rates for v in x])
    return rates[:, EARLY], rates[:, -1]


def picture(study: optuna.Study) -> Figure:
    """Draw the schedules, the model with draws and theta's means, and the losses."""
    told, picked = generations(study), recommend(study)
    trials = {t.number: t for t in study.trials if t.value is not None}
    of_trial = {n: g.index for g in told for n in g.trials if n in trials}
    colors = ScalarMappable(Normalize(0, told[-1].index), "viridis")
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, model_of, losses = figure.subplots(1, 3, width_ratios=[1, 1.1, 1])

    for n, m in of_trial.items():
        curves.plot(Schedule.from_trial(trials[n]).keep_rates, color=colors.to_rgba(m), lw=0.9)
    assert picked.schedule is not None
    curves.plot(picked.schedule.keep_rates, color="crimson", lw=2.5, label="recommended")
    curves.set(xlabel="epoch", ylabel="R(t)", ylim=(0, 1.03), title="trained schedules")
    curves.legend(loc="lower left")

    first = trials[min(trials)]
    space = SearchSpace.of(first.distributions, read_tags(first))
    x = np.array([space.encode(t.params) for t in trials.values()])
    values = np.array([t.value for t in trials.values()], dtype=float)
    model = Model.fit(space, x, active=np.ones(x.shape, dtype=bool), losses=values)
    anywhere = draws(space, space.distribution.uniform_theta(), 4000)
    mean = model.gp.mean(model.featurize(anywhere))
    early, last = at_two_epochs(space, anywhere)
    dots = model_of.scatter(early, last, c=100 * mean, s=6, cmap="Greys_r", label="uniform draws")
    figure.colorbar(dots, ax=model_of, label="expected validation error, %")
    model_of.scatter(
        *at_two_epochs(space, x), color=[colors.to_rgba(of_trial[n]) for n in trials], s=26,
        edgecolor="white", lw=0.6, label="trained",
    )  # fmt: skip
    means = np.array([
        np.mean(at_two_epochs(space, draws(space, g.theta, 400)), axis=1) for g in told
    ])  # fmt: skip
    model_of.plot(*means.T, "o-", color="tab:orange", ms=3, label=r"mean over $p_\theta$")
    model_of.plot(*at_two_epochs(space, space.encode(picked.params)[None]), "*", ms=15,
                  color="crimson")  # fmt: skip
    model_of.set(xlabel=f"R({EARLY})", ylabel="R at the end", title="the model, and the search")
    model_of.legend(loc="upper left", fontsize=8)

    for g in told:
        found = 100 * g.losses[np.isfinite(g.losses)]
        losses.plot(np.full(len(found), g.index), found, "o", ms=4, color=colors.to_rgba(g.index))
        losses.plot([g.index - 0.3, g.index + 0.3], [found.mean()] * 2, color="black", lw=1.5)
    low, high = (100 * v for v in picked.interval)
    losses.axhspan(low, high, color="crimson", alpha=0.2)
    losses.axhline(100 * picked.expected_loss, color="crimson", label="recommended, expected")
    losses.set(xlabel="generation", ylabel="validation error, %", title="losses, and their means",
               ylim=(0, None))  # fmt: skip
    losses.legend()
    return figure


if __name__ == "__main__":
    names = optuna.get_all_study_names(sys.argv[1])
    picture(optuna.load_study(study_name=names[0], storage=sys.argv[1])).savefig(OUT, dpi=90)
