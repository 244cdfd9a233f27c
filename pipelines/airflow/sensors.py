"""What a run waits for: the candidates of its `ds`, and its turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseOperator, BaseSensorOperator, Context
from airflow.sdk.exceptions import AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from pipelines.airflow.days import scored_ds
from pipelines.airflow.settings import Settings
from pipelines.airflow.tables import has_ds


class WaitForCandidates(BaseOperator):
    """Ends when `candidates` holds the run's `ds`; waits in the triggerer, where many waits cost one process.

    Looks itself first: an event that comes at once may overtake the scheduler, which then takes the task for lost
    ("finished with state success, but the task instance's state attribute is queued": seen, on a busy machine).
    """

    def __init__(self, *, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self.settings = settings

    def execute(self, context: Context) -> None:
        try:
            ds = scored_ds(context["dag_run"].logical_date)
        except ValueError as err:
            raise AirflowFailException(str(err)) from err
        location = self.settings.table("candidates")
        if has_ds(location, ds):
            self.found(context, ds)
            return
        self.log.info("waiting for ds %s of %s", ds, location)
        wait_s = self.settings.candidates_timeout_h * 3600
        trigger = CandidatesTrigger(location=location, ds=ds, poll_s=self.settings.poll_s, wait_s=wait_s)
        self.defer(trigger=trigger, method_name="found")

    def found(self, context: Context, event: str | None) -> None:
        if event is None:
            hours = self.settings.candidates_timeout_h
            raise AirflowFailException(f"no candidates within {hours:g} h in {self.settings.table('candidates')}")
        self.log.info("candidates hold ds %s", event)


class CandidatesTrigger(BaseTrigger):
    """Looks into the table every `poll_s` seconds, in a thread: the triggerer's loop must not wait for storage.

    Its event is the `ds`; None after `wait_s` seconds without it.
    """

    def __init__(self, *, location: str, ds: str, poll_s: float, wait_s: float) -> None:
        super().__init__()
        self.location, self.ds, self.poll_s, self.wait_s = location, ds, poll_s, wait_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        values = {"location": self.location, "ds": self.ds, "poll_s": self.poll_s, "wait_s": self.wait_s}
        return "pipelines.airflow.sensors.CandidatesTrigger", values

    async def run(self) -> AsyncIterator[TriggerEvent]:
        deadline, found = time.monotonic() + self.wait_s, False
        while not found and time.monotonic() < deadline:
            await asyncio.sleep(self.poll_s)
            found = await asyncio.to_thread(has_ds, self.location, self.ds)
        yield TriggerEvent(self.ds if found else None)


class WaitForTurn(BaseSensorOperator):
    """Ends when no run of an earlier day is under way: histories come forward one day at a time, in the order of `ds`.

    Airflow holds scheduled and triggered runs apart by the DAG's max_active_runs, but a back-fill's runs count by
    themselves, ten at a time unless it was told otherwise. depends_on_past would hold up every later day after one that
    the gate refused.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(mode="reschedule", **options)

    def poke(self, context: Context) -> bool:
        earlier = context["ti"].get_previous_dagrun(state="running")
        if earlier is not None:
            self.log.info("run %s of an earlier day is under way", earlier.run_id)
        return earlier is None


class WaitForDaily(BaseSensorOperator):
    """Ends when no day is being scored: a back-fill would replace what a week builds beside the newest histories."""

    def __init__(self, **options: Any) -> None:
        super().__init__(mode="reschedule", **options)

    def poke(self, context: Context) -> bool:
        under_way = context["ti"].get_dr_count(dag_id="gesr_daily", states=["running"])
        if under_way:
            self.log.info("%d runs of gesr_daily are under way", under_way)
        return not under_way
