"""The MovieLens-100K sample: 100,000 ratings of 943 users with seconds, 1,682 films. Driver only.

Its terms (GroupLens) allow research use and no redistribution, so it is fetched from the package that carries it on
demand and never kept with the project.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.errors import InputError
from gesr_core.names import Col, Role
from gesr_core.samples.download import PinnedWheel

WHEEL: Final = PinnedWheel(
    package="recbole",
    version="1.2.1",
    file_name="recbole-1.2.1-py3-none-any.whl",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
)
ABOUT: Final = "MovieLens-100K, ratings of films of 1997-09-20 to 1998-04-22: 100,000 of 943 users and 1,682 films"
FORM: Final = 1
# A rating from here on is the action `liked`, one below `rated`.
_LIKED: Final = 4.0
_FOLDER: Final = "recbole/dataset_example/ml-100k"
# Headers bear the source's own types.
_RATINGS: Final = {
    "user_id:token": pa.int64(),
    "item_id:token": pa.int64(),
    "rating:float": pa.float64(),
    "timestamp:float": pa.int64(),
}
_ITEMS: Final = {"item_id:token": pa.int64(), "release_year:token": pa.string(), "class:token_seq": pa.string()}
_USERS: Final = {
    "user_id:token": pa.int64(),
    "age:token": pa.int64(),
    "gender:token": pa.string(),
    "occupation:token": pa.string(),
}


def write_source(wheel: Path, folder: Path) -> int:
    """Check the source, write its rows as Parquet into a folder, and return how many ratings there are.

    Raises:
        InputError: as the readers below.
    """
    ratings = read_ratings(wheel)
    for name, table in (("ratings", ratings), ("items", read_items(wheel)), ("users", read_users(wheel))):
        pa_parquet.write_table(table, folder / f"{name}.parquet")
    return int(ratings.num_rows)


def tables(spark: SparkSession, folder: Path) -> dict[Role, DataFrame]:
    """Return the tables from such a folder: a rating is an event, its value the stars; genres are a list."""
    ratings, items, users = (
        spark.read.parquet(str(folder / f"{name}.parquet")) for name in ("ratings", "items", "users")
    )
    at = F.timestamp_micros("event_us")
    events = ratings.select(
        Col.USER_ID,
        Col.ITEM_ID,
        at.alias(Col.EVENT_TS),
        F.when(F.col(Col.VALUE) >= _LIKED, "liked").otherwise("rated").alias(Col.ACTION),
        Col.VALUE,
        F.date_format(at, "yyyy-MM-dd").alias(Col.DS),
    )
    films = items.select(Col.ITEM_ID, F.split("genres", " ").alias("genres"), "release_year")
    return {Role.ITEMS: films, Role.USERS: users, Role.EVENTS: events}


def read_ratings(wheel: Path) -> pa.Table:
    """Return (user_id, item_id, event_us, value), one row per rating, in the order (event_us, user_id, item_id).

    Raises:
        InputError: there is no such member, or a column is missing, of another type or null.
    """
    table = _read(wheel, "ml-100k.inter", _RATINGS)
    for name in table.column_names:
        if table[name].null_count:
            raise InputError(f"ml-100k.inter in {wheel}: {table[name].null_count} rows have no {name}")
    ratings = pa.table(
        {
            Col.USER_ID: table["user_id:token"],
            Col.ITEM_ID: table["item_id:token"],
            "event_us": pc.multiply(table["timestamp:float"], 1_000_000),
            Col.VALUE: table["rating:float"],
        }
    )
    return ratings.sort_by([(name, "ascending") for name in ("event_us", Col.USER_ID, Col.ITEM_ID)])


def read_items(wheel: Path) -> pa.Table:
    """Return (item_id, first_genre, genres, release_year): the genres as the source lists them, and the first.

    Raises:
        InputError: there is no such member, or it is not as expected.
    """
    table = _read(wheel, "ml-100k.item", _ITEMS)
    genres = table["class:token_seq"]
    items = {
        Col.ITEM_ID: table["item_id:token"],
        "first_genre": pc.list_element(pc.split_pattern(pc.fill_null(genres, "unknown"), " "), 0),
        "genres": genres,
        "release_year": table["release_year:token"],
    }
    return pa.table(items).sort_by(Col.ITEM_ID)


def read_users(wheel: Path) -> pa.Table:
    """Return (user_id, age_band, gender, occupation); the band is the age's ten years, such as '20'.

    Raises:
        InputError: there is no such member, or it is not as expected.
    """
    table = _read(wheel, "ml-100k.user", _USERS)
    band = pc.multiply(pc.divide(table["age:token"], 10), 10)
    users = {
        Col.USER_ID: table["user_id:token"],
        "age_band": pc.cast(band, pa.string()),
        "gender": table["gender:token"],
        "occupation": table["occupation:token"],
    }
    return pa.table(users).sort_by(Col.USER_ID)


def _read(wheel: Path, member: str, types: dict[str, pa.DataType]) -> pa.Table:
    path = f"{_FOLDER}/{member}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            text = archive.read(path)
    except (KeyError, zipfile.BadZipFile, OSError) as err:
        raise InputError(f"{wheel} does not hold {path}: {err}") from err
    try:
        return pa_csv.read_csv(
            pa.BufferReader(text),
            parse_options=pa_csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=_convert(list(types), types),
        )
    except (pa.ArrowInvalid, KeyError) as err:
        raise InputError(f"{path} in {wheel} is not as expected: {err}") from err


def _convert(names: Sequence[str], types: dict[str, pa.DataType]) -> pa_csv.ConvertOptions:
    return pa_csv.ConvertOptions(
        column_types=types, include_columns=list(names), null_values=[""], strings_can_be_null=True
    )
