"""The settings of the DAGs: settings.yaml, or the file that GESR_AIRFLOW_SETTINGS names. Imports no Airflow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import yaml

VARIABLE: Final = "GESR_AIRFLOW_SETTINGS"
ROOT: Final = Path(__file__).resolve().parents[2]
RUNNERS: Final = ("spark_submit", "spark_operator", "databricks")


@dataclass(frozen=True)
class Settings:
    """The keys of settings.yaml, which says what each means."""

    runner: str
    project: str | None
    environment: str | None
    spark_connection: str
    databricks_connection: str
    databricks_jobs: Mapping[str, str]
    env: str
    set: tuple[str, ...]
    label_window_days: int
    tables: Mapping[str, str]
    daily: Mapping[str, str]
    weekly: Mapping[str, str] | None
    candidates_timeout_h: float
    poll_s: float
    job_timeout_h: float
    training_timeout_h: float
    retries: int
    retry_delay_s: float

    @property
    def project_folder(self) -> Path:
        return Path(self.project) if self.project else ROOT

    def table(self, role: str) -> str:
        """Return where a table is, a folder within the project as an absolute path."""
        location = self.tables[role]
        return location if ":/" in location else str(self.project_folder / location)


# Those of the settings that are mappings: the keys that each must have.
_KEYS: Final = {
    "databricks_jobs": {"daily", "weekly"},
    "tables": {"candidates", "ledger"},
    "daily": {"schedule", "checkpoint"},
    "weekly": {"schedule", "model"},
}


def load_settings() -> Settings:
    """Read the settings.

    Raises:
        ValueError: a key is missing, unknown or of no use; the DAG then shows it as its import error.
    """
    file = Path(os.environ.get(VARIABLE) or Path(__file__).with_name("settings.yaml"))
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    problems = _problems(values)
    if problems:
        raise ValueError(f"{file}: {'; '.join(problems)}")
    return Settings(**{**values, "set": tuple(values["set"])})


def _problems(values: Mapping[str, Any]) -> list[str]:
    problems = [f"{where}: missing" for where in sorted({field.name for field in fields(Settings)} - set(values))]
    problems += [f"{where}: unknown" for where in sorted(set(values) - {field.name for field in fields(Settings)})]
    for name, keys in _KEYS.items():
        given = values.get(name)
        if given is not None and set(given) != keys:
            problems.append(f"{name} needs the keys {sorted(keys)}, not {sorted(given)}")
    if values.get("runner") not in RUNNERS:
        problems.append(f"runner is one of {list(RUNNERS)}, not {values.get('runner')!r}")
    return problems or _unsafe(values)


def _unsafe(values: Mapping[str, Any]) -> list[str]:
    # By a model's name score_daily takes its newest checkpoint: the one that the weekly DAG just trained.
    weekly, checkpoint = values["weekly"], values["daily"]["checkpoint"]
    if weekly and checkpoint in (None, weekly["model"]):
        return [
            f"daily.checkpoint {checkpoint!r} would score with each challenger before it is promoted: "
            f"name an alias, models:/{weekly['model']}@champion"
        ]
    return []
