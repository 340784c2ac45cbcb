"""Statements on the tables of a database of Optuna, where Optuna has none or takes many.

`_optuna` calls these functions and hands them the engine and the tables, so that a search on
another kind of storage imports no SQLAlchemy.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from functools import cache
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.trial import FrozenTrial

_IN_A_STATEMENT = 500  # identifiers; SQLite before 3.32 takes 999 variables


def read_trials(
    session: Any, models: Any, study_id: int, last: int, others: Iterable[int]
) -> list[FrozenTrial]:
    """Read trials as Optuna does, and return what it returns, with far less work.

    Optuna makes an object of each row of each table, and parses each distribution twice.

    Args:
        session: A session of SQLAlchemy.
        models: Optuna's module of that name.
        study_id: The study.
        last: Trials with larger identifiers are read.
        others: Identifiers of other trials that are read.

    Returns:
        The trials in the order of their identifiers.

    Raises:
        KeyError: If the study does not exist.
    """
    model = models.TrialModel
    models.StudyModel.find_or_raise_by_id(study_id, session)
    others, wanted = set(others), model.trial_id > last
    if len(others) > _IN_A_STATEMENT:
        wanted = model.trial_id >= min(others)
    elif others:
        wanted |= model.trial_id.in_(sorted(others))
    query = session.query(model).filter(model.study_id == study_id, wanted)
    trials = [
        trial
        for trial in query.order_by(model.trial_id)
        if trial.trial_id > last or trial.trial_id in others
    ]
    if not trials:
        return []
    ids = [trial.trial_id for trial in trials]
    chosen = ids if len(ids) <= _IN_A_STATEMENT else query.with_entities(model.trial_id)

    def rows(table: Any, *columns: str, order: str | None = None) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = defaultdict(list)
        kept = session.query(*(getattr(table, name) for name in ("trial_id", *columns)))
        kept = kept.filter(table.trial_id.in_(chosen))
        for trial_id, *row in kept.order_by(order and getattr(table, order)):
            found[trial_id].append(row)
        return found

    params = rows(
        models.TrialParamModel, "param_name", "param_value", "distribution_json", order="param_id"
    )
    values = rows(models.TrialValueModel, "objective", "value", "value_type")
    user_attrs = rows(models.TrialUserAttributeModel, "key", "value_json")
    system_attrs = rows(models.TrialSystemAttributeModel, "key", "value_json")
    reported = rows(
        models.TrialIntermediateValueModel,
        "step", "intermediate_value", "intermediate_value_type",
    )  # fmt: skip
    distribution = cache(json_to_distribution)
    value = models.TrialValueModel.stored_repr_to_value
    intermediate = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    return [
        FrozenTrial(
            number=trial.number,
            state=trial.state,
            value=None,
            values=[value(*kept) for _, *kept in sorted(values[i])] or None,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            params={name: distribution(d).to_external_repr(x) for name, x, d in params[i]},
            distributions={name: distribution(d) for name, _, d in params[i]},
            user_attrs={key: json.loads(text) for key, text in user_attrs[i]},
            system_attrs={key: json.loads(text) for key, text in system_attrs[i]},
            intermediate_values={step: intermediate(*kept) for step, *kept in reported[i]},
            trial_id=i,
        )
        for i, trial in zip(ids, trials, strict=True)
    ]


def trials_since(
    engine: Any, study_id: int, last: int, others: Iterable[int], keys: Iterable[str]
) -> list[tuple[int, str, int, int]]:
    """Read in one statement how far the trials of a study are.

    Args:
        engine: The engine of the database.
        study_id: The study.
        last: Trials with larger identifiers are read.
        others: Identifiers of other trials that are read.
        keys: Names of system attributes, without quotation marks.

    Returns:
        Identifier, state, number of parameters, and how many of the attributes it has, of each
        trial.
    """
    ids = ", ".join(map(str, others)) or "NULL"
    names = ", ".join(f"'{key}'" for key in keys)
    statement = (
        "SELECT t.trial_id, t.state, "
        "(SELECT COUNT(*) FROM trial_params p WHERE p.trial_id = t.trial_id), "
        "(SELECT COUNT(*) FROM trial_system_attributes a "
        f"WHERE a.trial_id = t.trial_id AND a.{_quoted(engine, 'key')} IN ({names})) "
        f"FROM trials t WHERE t.study_id = {study_id} "
        f"AND (t.trial_id > {last} OR t.trial_id IN ({ids}))"
    )
    with closing(engine.raw_connection()) as connection:  # closing returns it to the pool
        cursor = connection.cursor()
        cursor.execute(statement)
        return [tuple(row) for row in cursor.fetchall()]


def insert_attr(engine: Any, trial_id: int, key: str, value: Any) -> bool:
    """Give a running trial an attribute that it does not have yet, in one statement.

    Args:
        engine: The engine of the database.
        trial_id: The trial.
        key: The attribute.
        value: A JSON value.

    Returns:
        Whether that was done: the trial runs. If it has the attribute, the database raises.
    """
    mark = "?" if engine.dialect.paramstyle == "qmark" else "%s"
    statement = (
        f"INSERT INTO trial_system_attributes (trial_id, {_quoted(engine, 'key')}, value_json) "
        f"SELECT trial_id, {mark}, {mark} FROM trials "
        f"WHERE trial_id = {trial_id} AND state = 'RUNNING'"
    )
    with closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        cursor.execute(statement, (key, json.dumps(value)))
        connection.commit()
        return bool(cursor.rowcount)


def _quoted(engine: Any, name: str) -> str:
    return str(engine.dialect.identifier_preparer.quote_identifier(name))


def replace_attr(engine: Any, table: Any, study_id: int, key: str, old: Any, new: Any) -> bool:
    """Update the attribute of a study if it is `old`, or insert it if it is missing and old None.

    Args:
        engine: The engine of the database.
        table: The table of the attributes. A row of one study and key is unique.
        study_id: The study.
        key: The attribute.
        old: The value that it must have, as JSON; None if it must be missing or None.
        new: The value that it gets.

    Returns:
        Whether it was set.
    """
    row = (table.c.study_id == study_id) & (table.c.key == key)
    with engine.begin() as connection:
        found = connection.execute(table.select().where(row)).first()
        text = None if found is None else found.value_json
        if text is not None:
            same = row & (table.c.value_json == text)
            update = table.update().where(same).values(value_json=json.dumps(new))
            return bool(json.loads(text) == old and connection.execute(update).rowcount)
    if old is not None:
        return False
    values = {"study_id": study_id, "key": key, "value_json": json.dumps(new)}
    try:
        with engine.begin() as connection:
            connection.execute(table.insert().values(values))
    except Exception:
        with engine.connect() as connection:
            if connection.execute(table.select().where(row)).first() is not None:
                return False  # another process was faster
        raise
    return True
