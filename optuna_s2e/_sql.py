"""Statements on the tables of a database of Optuna, where Optuna has none or takes many.

`_optuna` calls these functions and hands them the engine and the tables, so that a search on
another kind of storage imports no SQLAlchemy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from typing import Any


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
