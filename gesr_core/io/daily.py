"""The tables that score_daily reads of one `ds`, each with the version that was read. Driver only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import Config
from gesr_core.errors import InputError
from gesr_core.io.histories import find_histories
from gesr_core.io.tables import column_type, one_ds, read_input, read_table, require_unique, table_detail, table_version
from gesr_core.names import Col, Role


@dataclass(frozen=True)
class InputTable:
    """The rows that one `ds` reads of a table, and which table and version they come from; `table_id` is Delta's."""

    df: DataFrame
    location: str
    version: int
    table_id: str


def read_daily(
    spark: SparkSession,
    config: Config,
    *,
    ds: str,
    user_features: Sequence[str],
    user_lists: Sequence[str],
    pinned: Mapping[Role, tuple[str, int]] | None = None,
    without_histories: bool = False,
) -> dict[Role, InputTable]:
    """Read candidates, histories and users of a `ds`: the newest versions, or the pinned (location, version) of each.

    Args:
        spark: the session.
        config: the resolved configuration.
        ds: the day.
        user_features: declared columns of `users`.
        user_lists: those of them that hold lists.
        pinned: what an earlier run read.
        without_histories: leave histories out where none stand at `ds` any more.

    Raises:
        InputError: a table, a column or a pinned version is missing, the histories stand at another day, or the id
            types of two tables differ.
    """
    tables = {
        Role.CANDIDATES: _newest_or_pinned(spark, config, Role.CANDIDATES, pinned),
        Role.USERS: _newest_or_pinned(spark, config, Role.USERS, pinned, features=user_features, lists=user_lists),
    }
    candidates = tables[Role.CANDIDATES]
    tables[Role.CANDIDATES] = replace(candidates, df=one_ds(candidates.df, ds).select(Col.USER_ID, Col.CANDIDATES))
    users_key = (Col.USER_ID, Col.VALID_FROM) if Col.VALID_FROM in tables[Role.USERS].df.columns else (Col.USER_ID,)
    require_unique(tables[Role.USERS].df, users_key, where=f"users ({tables[Role.USERS].location})")
    try:
        tables[Role.HISTORIES] = _histories(spark, config, ds, pinned)
    except InputError:
        if not without_histories:
            raise
    _require_same_ids(tables)
    return tables


def newest_days(candidates: DataFrame, *, days: int) -> list[str]:
    """Return the newest days that `candidates` has, for a message."""
    newest = candidates.select(F.col(Col.DS).cast("string").alias(Col.DS)).distinct().orderBy(F.desc(Col.DS))
    return [row[Col.DS] for row in newest.limit(days).collect()]


def item_type(df: DataFrame, lists: str) -> str:
    """Return the type of the item ids in a column of lists of structs."""
    return str(df.schema[lists].dataType.elementType[Col.ITEM_ID].dataType.simpleString())  # type: ignore[attr-defined]


def _newest_or_pinned(
    spark: SparkSession,
    config: Config,
    role: Role,
    pinned: Mapping[Role, tuple[str, int]] | None,
    *,
    features: Sequence[str] = (),
    lists: Sequence[str] = (),
) -> InputTable:
    ref = config.table(role)
    version = pinned[role][1] if pinned else table_version(spark, ref)
    df = read_input(spark, ref, version=version, features=features, lists=lists)
    return InputTable(df, ref.location, version, table_detail(spark, ref).id)


def _histories(
    spark: SparkSession, config: Config, ds: str, pinned: Mapping[Role, tuple[str, int]] | None
) -> InputTable:
    if pinned is None:
        found = find_histories(spark, config, ds=ds)
        location, version = config.table(found.role).location, found.version
    else:
        location, version = pinned[Role.HISTORIES]
    beside = config.table(Role.HISTORIES_AT)
    ref = beside if location == beside.location else config.table(Role.HISTORIES)
    df = read_table(spark, ref, version=version)
    df = df.where(F.col(Col.AS_OF) == ds) if ref is beside else df
    return InputTable(df.select(Col.USER_ID, Col.HISTORY), location, version, table_detail(spark, ref).id)


def _require_same_ids(tables: Mapping[Role, InputTable]) -> None:
    candidates = tables[Role.CANDIDATES].df
    users = {f"{role.value}.user_id": column_type(table.df, Col.USER_ID) for role, table in tables.items()}
    items = {"candidates.item_id": item_type(candidates, Col.CANDIDATES)}
    if Role.HISTORIES in tables:
        items["histories.item_id"] = item_type(tables[Role.HISTORIES].df, Col.HISTORY)
    for types in (users, items):
        (first, expected), *others = types.items()
        for name, found in others:
            if found != expected:
                raise InputError(f"{first} is {expected}, but {name} is {found}: make them one type")
