r"""Sample-selection schedules R(t) and the spaces they are searched in.

Notation
    t            epoch, 0 .. T - 1
    T            number of training epochs, `n_epochs`
    R(t)         `keep_rates`: share of each mini-batch, those of smallest loss, that is trained on

R(0) = 1 (Assumption 1: nothing is memorised before training) and 0 < R(t) <= 1.

A space is a name with two functions (`_formulas`): its distributions, and params -> R(t). The
space, its version and the number of epochs are stored with the parameters of every trial, as the
single-valued parameters `R.<space>` and `R.n_epochs`. So the parameters of a trial alone give its
schedule back.

References:
    Yao et al., "Searching to Exploit Memorization Effect in Learning with Noisy Labels",
    ICML 2020: Eq 1, Eq 4, Table 1, Assumption 1.
    Han et al., "Co-teaching: Robust training of deep neural networks with extremely noisy
    labels", NeurIPS 2018.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import BaseTrial, FrozenTrial, Trial

from optuna_s2e._checks import check_axes, check_choice, check_int, check_number
from optuna_s2e._optuna import fix_params
from optuna_s2e._typing import FloatArray
from optuna_s2e.schedules._first_trial import is_first_trial
from optuna_s2e.schedules._formulas import SPACES
from optuna_s2e.schedules._informed import informed_distributions, informed_middle

MIN_KEEP_RATE = 1e-6  # R(t) stays positive; at least one sample is kept however small it is
MAX_EPOCHS = 1_000_000
PREFIX = "R."  # of every parameter that belongs to a schedule
N_EPOCHS = "R.n_epochs"
TAGS = frozenset([N_EPOCHS, *(PREFIX + kind for kind in SPACES)])  # they name a space
_FORMAT = "optuna_s2e.schedule"


def n_kept(keep_rates: npt.ArrayLike, batch_size: int) -> npt.NDArray[np.int64]:
    """Return how many samples of a mini-batch are trained on: max(1, floor(R(t) * batch_size)).

    Args:
        keep_rates: R(t), any shape, in (0, 1].
        batch_size: Number of samples in the mini-batch, at least 1.

    Returns:
        int64 counts in [1, batch_size], of the shape of `keep_rates`.

    Raises:
        ValueError: If `batch_size` is no int of at least 1.

    Example:
        >>> from optuna_s2e.schedules import n_kept
        >>> n_kept([1.0, 0.29], 100).tolist()
        [100, 29]
    """
    check_int("batch_size", batch_size, 1)
    # floor(0.29 * 100) is 28 in binary floating point, but 29 is meant: hence 1e-9.
    kept = np.floor(np.asarray(keep_rates, dtype=np.float64) * batch_size + 1e-9)
    return np.clip(kept, 1, batch_size).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A sample-selection schedule R(t), t = 0 .. T - 1.

    Attributes:
        keep_rates: R(t), float64, read-only, values in (0, 1], R(0) = 1, (T,).
        params: Optuna parameters that decode to it. None if it comes from an array or a file
            without parameters, or is a mean of schedules.

    Raises:
        ValueError: If the values are not a schedule.

    Example:
        >>> Schedule([1.0, 0.75, 0.5]).n_kept(128)
        array([128,  96,  64])
    """

    keep_rates: FloatArray
    params: Mapping[str, float | int] | None = field(default=None, repr=False)

    def __init__(
        self, keep_rates: npt.ArrayLike, params: Mapping[str, float | int] | None = None
    ) -> None:
        rates = np.array(keep_rates, dtype=np.float64)  # a copy, so nobody else can change it
        check_axes("keep_rates", rates, "(n_epochs,)")
        check_int("n_epochs", rates.size, 1, MAX_EPOCHS)
        if not np.all((rates > 0) & (rates <= 1)):  # also refuses NaN
            epoch = int(np.argmin((rates > 0) & (rates <= 1)))
            raise ValueError(
                f"keep_rates must be in (0, 1], but got {float(rates[epoch])!r} at epoch {epoch}."
            )
        if rates[0] != 1:
            raise ValueError(
                f"keep_rates[0] must be 1 (Assumption 1), but got {float(rates[0])!r}."
            )
        rates.setflags(write=False)
        object.__setattr__(self, "keep_rates", rates)
        object.__setattr__(self, "params", None if params is None else dict(params))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self.params == other.params and np.array_equal(self.keep_rates, other.keep_rates)

    def __hash__(self) -> int:
        return hash(self.keep_rates.tobytes())

    @property
    def n_epochs(self) -> int:
        """T, the number of training epochs."""
        return len(self.keep_rates)

    @property
    def forget_rates(self) -> FloatArray:
        """1 - R(t), Co-teaching's form of a schedule, shape (T,)."""
        return 1.0 - self.keep_rates

    def n_kept(self, batch_size: int) -> npt.NDArray[np.int64]:
        """Return how many samples of a mini-batch are trained on in each epoch, int64 (T,).

        Args:
            batch_size: Number of samples in the mini-batch, at least 1.

        Raises:
            ValueError: If `batch_size` is no int of at least 1.
        """
        return n_kept(self.keep_rates, batch_size)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Schedule:
        """Decode the parameters of a trial; parameters of other things are ignored.

        Args:
            params: Parameters by name, as Optuna stores them.

        Raises:
            ValueError: If they hold no schedule, or one of an unknown space or version.
        """
        return find_space(params).from_params(params)

    @classmethod
    def from_trial(cls, trial: FrozenTrial) -> Schedule:
        """Decode the schedule of a stored trial.

        Raises:
            ValueError: As `from_params`; the message names the trial.
        """
        try:
            return cls.from_params(trial.params)
        except ValueError as error:
            raise ValueError(f"Trial {trial.number} holds no schedule: {error}") from error

    def to_json(self) -> str:
        """Return the schedule as JSON text that `from_json` reads back exactly."""
        document = {
            "format": _FORMAT,
            "version": 1,
            "n_epochs": self.n_epochs,
            "keep_rates": self.keep_rates.tolist(),
            "params": self.params,
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """Read a schedule from the text that `to_json` wrote.

        Raises:
            ValueError: If the text is damaged, or was written by a later release.
        """
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"The text is no JSON ({error}).") from error
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError(f'The JSON is no schedule: "format" must be "{_FORMAT}".')
        if document.get("version") != 1:
            raise ValueError(
                f'"version" must be 1, but got {document.get("version")!r}: '
                "read it with the release of optuna_s2e that wrote it."
            )
        rates, params = document.get("keep_rates"), document.get("params")
        if not isinstance(rates, list) or not all(isinstance(r, int | float) for r in rates):
            raise ValueError('"keep_rates" must be a list of numbers.')
        if document.get("n_epochs") != len(rates):
            raise ValueError(
                f'"n_epochs" is {document.get("n_epochs")!r}, but "keep_rates" holds '
                f"{len(rates)} values: the file is damaged."
            )
        schedule = cls(rates)
        if params is None:
            return schedule
        if not isinstance(params, dict):
            raise ValueError('"params" must be an object or null.')
        decoded = cls.from_params(params)
        # Not bit for bit: exp and log of another machine may differ in the last place.
        if not np.allclose(decoded.keep_rates, rates, rtol=0, atol=1e-9):
            raise ValueError(
                '"params" decode to other values than "keep_rates": the file is damaged.'
            )
        return cls(rates, decoded.params)

    def save(self, path: str | Path) -> None:
        """Write `to_json()` to a file; an interrupted write leaves an old file as it was."""
        path = Path(path)
        if path.exists() and not path.is_file():  # a pipe or a device, such as /dev/stdout
            path.write_text(self.to_json())
            return
        path = path.resolve()  # what a symbolic link stands for
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json())
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read a file written by `save`.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it is damaged; the message names the file.
        """
        try:
            return cls.from_json(Path(path).read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no schedule file. {error}") from error


DEFAULT_KIND = "eq1"


class ScheduleSpace:
    """A space of schedules, from which an Optuna objective draws.

    Args:
        n_epochs: T, the number of training epochs, at least 2.
        kind: Name of the formulas. `"eq1"` (default) is Co-teaching's schedule, Eq 1, with 3
            parameters: the drop tau in [0, 0.95], the epoch t_k in [1, T] at which the drop is
            complete, and the exponent c in [1/4, 4] (log). `"table1"` is the paper's space, a
            convex combination (Eq 4) of the four bases of Table 1, each with its own a_1 .. a_4:
            3 + 16 parameters in [0, 1].
        noise_rate: Share of wrong labels, in [0, 1], known or estimated. It narrows the ranges of
            `"eq1"` to what wins at such a rate, and the first trial of a study is the `middle`.
            The ranges allow for an estimate that is off by a third. None takes the whole ranges.

    Raises:
        ValueError: If an argument is out of range, or `noise_rate` is given for another kind than
            `"eq1"`.

    Example:
        >>> import optuna
        >>> space = ScheduleSpace(n_epochs=4)
        >>> trial = optuna.trial.FixedTrial(
        ...     {"R.eq1": 1, "R.n_epochs": 4, "R.tau": 0.5, "R.tk": 2.0, "R.c": 1.0}
        ... )
        >>> space.suggest(trial).keep_rates
        array([1.  , 0.75, 0.5 , 0.5 ])
    """

    def __init__(
        self, n_epochs: int, kind: str = DEFAULT_KIND, *, noise_rate: float | None = None
    ) -> None:
        self.n_epochs = check_int("n_epochs", n_epochs, 2, MAX_EPOCHS)
        self.kind = check_choice("kind", kind, SPACES)
        self.noise_rate = None
        self._space = SPACES[self.kind]
        self._whole = self._searched = self._space.distributions(self.n_epochs)
        if noise_rate is not None:
            if self.kind != "eq1":
                raise ValueError(
                    f"kind must be 'eq1' if noise_rate is given, but got {kind!r}: what wins at a "
                    "noise rate is known for Eq 1 only. Leave noise_rate out."
                )
            self.noise_rate = check_number("noise_rate", noise_rate, 0.0, 1.0)
            self._searched = informed_distributions(self.n_epochs, self.noise_rate)

    def __repr__(self) -> str:
        rate = "" if self.noise_rate is None else f", noise_rate={self.noise_rate:g}"
        return f"ScheduleSpace(n_epochs={self.n_epochs}, kind={self.kind!r}{rate})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScheduleSpace):
            return NotImplemented
        return self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[int, str, float | None]:
        return self.n_epochs, self.kind, self.noise_rate

    @property
    def middle(self) -> Schedule | None:
        """The schedule that is suggested at the noise rate. None if the space knows no rate."""
        if self.noise_rate is None:
            return None
        return self.from_params(informed_middle(self.n_epochs, self.noise_rate))

    @property
    def tags(self) -> dict[str, int]:
        """The single-valued parameters that name the space: its version and T."""
        return {f"{PREFIX}{self.kind}": self._space.version, N_EPOCHS: self.n_epochs}

    @property
    def about(self) -> str:
        """R(t) and its parameters in one sentence."""
        return self._space.about

    @property
    def meanings(self) -> Mapping[str, str]:
        """What single parameters are, in two or three words, by name."""
        return self._space.meanings

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distributions of all parameters, tags first; for `study.ask`."""
        tags = {name: IntDistribution(value, value) for name, value in self.tags.items()}
        return {**tags, **self._searched}

    @property
    def searched(self) -> list[str]:
        """The names of the searched parameters."""
        return list(self._searched)

    def suggest(self, trial: BaseTrial) -> Schedule:
        """Draw the schedule of a trial; call it once per trial.

        If the space knows the noise rate, the first trial of a study is the `middle`, unless it
        was enqueued or the sampler is a `GridSampler`. It is no draw of `S2ESampler`, whose model
        of the loss knows it all the same. If it fails, the next one is, up to three times.

        Args:
            trial: An Optuna trial (also `FixedTrial`).
        """
        middle = self.middle
        if middle is not None and isinstance(trial, Trial) and is_first_trial(trial):
            fix_params(trial, self.to_params(middle))
        params: dict[str, float | int] = {}
        for name, value in self.tags.items():  # first, so that a sampler sees the space
            params[name] = trial.suggest_int(name, value, value)
        for name, d in self._searched.items():
            params[name] = trial.suggest_float(name, d.low, d.high, log=d.log)
        return self.from_params(params)

    def from_params(self, params: Mapping[str, Any]) -> Schedule:
        """Decode the parameters of a trial of this space; other parameters are ignored.

        Args:
            params: Parameters by name, as Optuna stores them. The tags may be missing. They may be
                out of the ranges that a noise rate sets, as those of a trial from before are.

        Raises:
            ValueError: If a parameter is missing, out of the range of its kind, or of another
                space.
        """
        own: dict[str, float | int] = {}
        for name, tag in self.tags.items():
            if name in params and params[name] != tag:
                raise ValueError(f"{name} must be {tag} in {self!r}, but got {params[name]!r}.")
            own[name] = tag
        for name, d in self._whole.items():
            if name not in params:
                raise ValueError(f"{name} is missing from the parameters of {self!r}.")
            own[name] = check_number(name, params[name], d.low, d.high)
        return Schedule(self.keep_rates(own), own)

    def to_params(self, schedule: Schedule) -> dict[str, float | int]:
        """Return the parameters that decode to a schedule, for `study.enqueue_trial`.

        Args:
            schedule: A schedule with parameters of this space.

        Raises:
            ValueError: If the schedule does not come from this space, or is out of the ranges that
                a noise rate sets.
        """
        own = schedule.params
        if own is None or any(own.get(name) != tag for name, tag in self.tags.items()):
            raise ValueError(
                f"schedule must come from {self!r}, but it comes from "
                f"{'an array' if own is None else find_space(own)!r}."
            )
        for name, d in self._searched.items():
            if not d.low <= own[name] <= d.high:
                raise ValueError(
                    f"{name} must be in [{d.low:g}, {d.high:g}] in {self!r}, but got "
                    f"{own[name]!r}. Search without noise_rate, or with another one."
                )
        return dict(own)

    def keep_rates(self, params: Mapping[str, Any]) -> FloatArray:
        """Return R(t) for t = 0 .. T - 1, shape (T,)."""
        rates: FloatArray = self.curves({n: [params[n]] for n in self._searched}, self.n_epochs)[0]
        return rates

    def curves(self, params: Mapping[str, npt.ArrayLike], n_points: int = 32) -> FloatArray:
        """Return R of many schedules on a grid, for example to compare them.

        Args:
            params: Searched parameters by name, (n,) each.
            n_points: Number of points of the grid, evenly spaced over [0, T - 1].

        Returns:
            R in (0, 1], with 1 in the first column, (n, n_points).
        """
        columns = {
            name: np.asarray(params[name], dtype=np.float64).reshape(-1, 1)
            for name in self._searched
        }
        t = np.linspace(0.0, self.n_epochs - 1.0, n_points)
        rates = self._space.keep_rates(columns, t, self.n_epochs)
        rates = np.asarray(np.clip(rates, MIN_KEEP_RATE, 1.0))
        rates[:, 0] = 1.0  # Assumption 1; Table 1's rises with a4 = 0 do not vanish at t = 0
        return rates


def find_space(params: Mapping[str, Any]) -> ScheduleSpace:
    """Return the space that the parameters of a trial name.

    Args:
        params: Parameters by name; `R.<space>` and `R.n_epochs` are read.

    Returns:
        The space.

    Raises:
        ValueError: If they name no space, several spaces, or one of an unknown version.

    Example:
        >>> from optuna_s2e.schedules import find_space
        >>> find_space({"R.eq1": 1, "R.n_epochs": 40, "lr": 0.1})
        ScheduleSpace(n_epochs=40, kind='eq1')
    """
    kinds = [kind for kind in SPACES if f"{PREFIX}{kind}" in params]
    if len(kinds) != 1 or N_EPOCHS not in params:
        raise ValueError(
            f"the parameters must name one schedule space ({N_EPOCHS} and one of "
            f"{[PREFIX + kind for kind in sorted(SPACES)]}), but they are {sorted(params)}."
        )
    kind = kinds[0]
    if params[f"{PREFIX}{kind}"] != SPACES[kind].version:
        raise ValueError(
            f"{PREFIX}{kind} (version) must be {SPACES[kind].version}, "
            f"but got {params[f'{PREFIX}{kind}']!r}. Decode it with the release that wrote it."
        )
    return ScheduleSpace(params[N_EPOCHS], kind)


def find_spaces(params: Mapping[str, Any]) -> list[ScheduleSpace]:
    """Return all spaces that parameters name and this release knows, ordered by name.

    Args:
        params: Parameters by name; `R.<space>` and `R.n_epochs` are read.

    Example:
        >>> from optuna_s2e.schedules import find_spaces
        >>> find_spaces({"R.eq1": 1, "R.n_epochs": 40}), find_spaces({"lr": 0.1})
        ([ScheduleSpace(n_epochs=40, kind='eq1')], [])
    """
    found = []
    for kind in sorted(SPACES):
        with suppress(ValueError):
            found.append(
                find_space({n: params[n] for n in (PREFIX + kind, N_EPOCHS) if n in params})
            )
    return found
