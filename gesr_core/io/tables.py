"""Read a role's table: existence, columns and types are checked, the Delta version is pinned. Driver only."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession, functions as F
from pyspark.sql.utils import AnalysisException

from gesr_core.config import TableRef
from gesr_core.errors import InputError
from gesr_core.names import Role
from gesr_core.schema import LIST_TYPES, NESTED_TYPES, InputColumn, input_columns


def table_exists(spark: SparkSession, ref: TableRef) -> bool:
    """Say whether the Delta table of `ref` exists."""
    if ref.is_path:
        return bool(DeltaTable.isDeltaTable(spark, ref.location))
    return bool(spark.catalog.tableExists(ref.location))


def table_version(spark: SparkSession, ref: TableRef) -> int:
    """Return the newest Delta version of the table.

    Raises:
        InputError: there is no such table.
    """
    _require_table(spark, ref)
    with _must_be_delta(ref):
        row = spark.sql(f"DESCRIBE HISTORY {ref.sql_name} LIMIT 1").select("version").first()
    if row is None:
        raise InputError(f"{ref.role}: {ref.location} has no Delta history")
    return int(row["version"])


@dataclass(frozen=True)
class TableDetail:
    """What Delta knows of a table: its id (a table created anew has another one) and its properties."""

    id: str
    properties: Mapping[str, str]


def table_detail(spark: SparkSession, ref: TableRef) -> TableDetail:
    """Return the table's id and properties.

    Raises:
        InputError: there is no such table.
    """
    _require_table(spark, ref)
    with _must_be_delta(ref):
        row = spark.sql(f"DESCRIBE DETAIL {ref.sql_name}").select("id", "properties").collect()[0]
    return TableDetail(id=row["id"], properties=dict(row["properties"]))


def read_table(spark: SparkSession, ref: TableRef, *, version: int | None = None) -> DataFrame:
    """Return the table under its contract's column names, at a pinned version when given.

    Raises:
        InputError: no such table or version, or `columns` in the configuration names a column that it lacks.
    """
    _require_table(spark, ref)
    reader = spark.read.format("delta")
    if version is not None:
        reader = reader.option("versionAsOf", version)
    try:
        df = reader.load(ref.location) if ref.is_path else reader.table(ref.location)
    except AnalysisException as err:
        if version is None:
            raise
        raise InputError(
            f"{_where(ref)}: version {version} cannot be read any more ({str(err).splitlines()[0]}); "
            "a run that pinned it is begun anew with --replace"
        ) from err
    for name, real_name in ref.columns.items():
        require_columns(df, [real_name], where=_where(ref))
        df = df.withColumnRenamed(real_name, name)
    return df


def files_are_gone(err: BaseException) -> bool:
    """Say whether an error means that files of a pinned version are gone: a vacuum leaves the log, which names them."""
    return any(text in str(err) for text in ("FILE_NOT_EXIST", "underlying files have been updated"))


def read_input(
    spark: SparkSession,
    ref: TableRef,
    *,
    version: int | None = None,
    tasks: Sequence[str] = (),
    features: Sequence[str] = (),
    lists: Sequence[str] = (),
) -> DataFrame:
    """Return an input table, checked against its contract and the declared features; `lists` are the multi-valued ones.

    Raises:
        InputError: no such table, a missing column (the nearest present one is named) or a column of another type.
    """
    df = read_table(spark, ref, version=version)
    columns = input_columns(Role(ref.role), tasks=tasks)
    require_columns(df, [*(column.name for column in columns), *features], where=_where(ref))
    require_types(df, columns, where=_where(ref))
    _require_feature_types(df, features, lists=lists, where=_where(ref))
    return df


def require_columns(df: DataFrame, names: Sequence[str], *, where: str, remedy: str = "") -> None:
    """Check that `df` has the columns.

    Raises:
        InputError: names the first missing one, what there is and the nearest name, and the `remedy`.
    """
    for name in names:
        if name not in df.columns:
            near = difflib.get_close_matches(name, df.columns, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            present = ", ".join(repr(column) for column in df.columns)
            todo = f"; {remedy}" if remedy else ""
            raise InputError(f"{where} has no column {name!r} (it has {present}){hint}{todo}")


def require_types(df: DataFrame, columns: Sequence[InputColumn], *, where: str) -> None:
    """Check the types of columns that `df` has.

    Raises:
        InputError: names the column, its type and those expected.
    """
    found = {field.name: field.dataType.simpleString() for field in df.schema.fields}
    for column in columns:
        if found[column.name] not in column.types:
            expected = " or ".join(column.types)
            raise InputError(f"{where}: column {column.name!r} is {found[column.name]}, expected {expected}")


def _require_feature_types(df: DataFrame, features: Sequence[str], *, lists: Sequence[str], where: str) -> None:
    for name in features:
        found = column_type(df, name)
        if name in lists and found not in LIST_TYPES:
            raise InputError(
                f"{where}: column {name!r} is {found}, but a feature of kind multi is one of {', '.join(LIST_TYPES)}"
            )
        if name not in lists and found.startswith(NESTED_TYPES):
            hint = "; declare it with kind: multi" if found in LIST_TYPES else ""
            raise InputError(f"{where}: column {name!r} is {found}, but its declared kind has one value a row{hint}")


def require_unique(df: DataFrame, keys: Sequence[str], *, where: str) -> None:
    """Check that no two rows share the keys: a join with such a table would multiply its other side.

    Raises:
        InputError: names one repeated key and how often it stands there.
    """
    repeated = df.groupBy(*keys).agg(F.count(F.lit(1)).alias("rows")).where("rows > 1").limit(1).collect()
    if repeated:
        named = ", ".join(f"{key} {repeated[0][key]!r}" for key in keys)
        raise InputError(f"{where} holds {named} {repeated[0]['rows']} times; it must stand there once")


def column_type(df: DataFrame, name: str) -> str:
    """Return a column's type as Spark's simple string (`bigint`, `string`, ...)."""
    return df.schema[name].dataType.simpleString()


def one_ds(df: DataFrame, ds: str) -> DataFrame:
    """Keep the partition `ds`, whether the column is a STRING or a DATE, and give it as a STRING."""
    return df.where(F.col("ds") == F.lit(ds)).withColumn("ds", F.lit(ds))


@contextmanager
def _must_be_delta(ref: TableRef) -> Iterator[None]:
    """A view and a table of another format have no versions to pin.

    Raises:
        InputError: Delta cannot describe it.
    """
    try:
        yield
    except AnalysisException as err:
        raise InputError(
            f"{_where(ref)} must be a Delta table, with versions to pin: {str(err).splitlines()[0]}"
        ) from err


def _where(ref: TableRef) -> str:
    return f"{ref.role} ({ref.location})"


def _require_table(spark: SparkSession, ref: TableRef) -> None:
    try:
        if table_exists(spark, ref):
            return
    except AnalysisException as err:
        raise InputError(f"{_where(ref)} cannot be read: {str(err).splitlines()[0]}") from err
    near = difflib.get_close_matches(
        ref.location.split("/")[-1].split(".")[-1], _neighbours(spark, ref), n=1, cutoff=0.5
    )
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"{ref.role}: there is no Delta table at {ref.location}{hint} "
        f"(set tables.{ref.role}.location in conf/<env>/tables.yaml)"
    )


def _neighbours(spark: SparkSession, ref: TableRef) -> list[str]:
    if ref.local_folder is not None:
        parent = ref.local_folder.parent
        return [p.name for p in parent.glob("*") if (p / "_delta_log").is_dir()] if parent.is_dir() else []
    if ref.is_path or not spark.catalog.databaseExists(ref.location.rpartition(".")[0] or "default"):
        return []
    return [table.name for table in spark.catalog.listTables(ref.location.rpartition(".")[0] or "default")]
