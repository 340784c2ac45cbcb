"""Trials as Optuna's own plots should see them: weights are weights, and nothing is constant.

A trial keeps a simplex as stick-breaking parameters and the name of its schedule space as
single-valued ones. It must: its parameters alone give its schedule back, also in a copy of the
trial, which keeps no system attributes. In Optuna's plots both only hide what matters.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any, NoReturn

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_s2e import _optuna
from optuna_s2e.distributions import find_simplexes, weight_names, weights_from_unit
from optuna_s2e.schedules import TAGS

_WEIGHT = FloatDistribution(0.0, 1.0)


def _plain_trial(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial with weights in place of stick-breaking parameters and without constants.

    Args:
        trial: A trial; it stays as it is.

    Returns:
        A copy. The trial itself if nothing is to be changed.
    """
    stored, distributions = trial.params, trial.distributions
    hidden = {name for name, d in distributions.items() if name in TAGS and d.single()}
    weights: dict[str, dict[str, float]] = {}  # of each simplex, by its first parameter
    for names in find_simplexes(distributions):
        values = weights_from_unit(np.array([stored[n] for n in names])).tolist()
        shown = dict(zip(weight_names(names), values, strict=True))
        if stored.keys().isdisjoint(shown):
            weights[names[0]] = shown
            hidden.update(names)
    if not hidden:
        return trial
    params: dict[str, Any] = {}
    for name, value in stored.items():
        params |= weights.get(name, {} if name in hidden else {name: value})
    result = copy.copy(trial)
    result.params = params
    result.distributions = {name: distributions.get(name, _WEIGHT) for name in params}
    return result


class PlainStorage(BaseStorage):
    """The trials of another storage as Optuna's plots should see them. Nothing can be written.

    Args:
        storage: The storage that is read.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._shown: dict[int, tuple[FrozenTrial, FrozenTrial]] = {}  # as stored, as shown

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._storage.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._storage.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._storage.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[Any]:
        return sorted(self._storage.get_all_studies(), key=_optuna.study_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return _plain_trial(self._storage.get_trial(trial_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        stored = self._storage.get_all_trials(study_id, deepcopy=False, states=states)
        known, shown = self._shown, {}
        for trial in stored:
            pair = known.get(key := _optuna.trial_id(trial))
            if pair is None or pair[0] is not trial or not trial.state.is_finished():
                pair = trial, _plain_trial(trial)
            shown[key] = pair
        self._shown = shown  # those of the last reading, so that no study stays for ever
        trials = [trial for _, trial in shown.values()]
        return copy.deepcopy(trials) if deepcopy else trials

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError("This study is a view for plots. Change the study that it shows.")

    create_new_study = delete_study = set_study_user_attr = set_study_system_attr = _refuse
    create_new_trial = set_trial_param = set_trial_state_values = _refuse
    set_trial_intermediate_value = set_trial_user_attr = set_trial_system_attr = _refuse


def for_optuna_plots(study: Study) -> Study:
    """Return a view of a study for Optuna's own plots, importances and tables.

    In the view, each weight of a simplex is a parameter, `mix 1` to `mix 4` for a simplex `mix`,
    in place of the stick-breaking parameters that the trials hold. The constants that name the
    space of a schedule, such as `R.eq1` and `R.n_epochs`, are left out. All else is as it is in
    the study, now and later.

    Args:
        study: A study of any sampler, with any number of objectives.

    Returns:
        A study that can be read, but not searched or changed.

    Example:
        >>> import optuna
        >>> from optuna_s2e import S2ESampler, ScheduleSpace
        >>> from optuna_s2e.visualization import for_optuna_plots
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(sampler=S2ESampler(seed=0))
        >>> space = ScheduleSpace(n_epochs=20)
        >>> study.optimize(lambda t: space.suggest(t).keep_rates.mean(), n_trials=8)
        >>> sorted(optuna.importance.get_param_importances(for_optuna_plots(study)))
        ['R.c', 'R.tau', 'R.tk']
        >>> figure = optuna.visualization.plot_slice(for_optuna_plots(study))  # figure.show()
    """
    return Study(study.study_name, PlainStorage(_optuna.storage_of(study)), RandomSampler())
