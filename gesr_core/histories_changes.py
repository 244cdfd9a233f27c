"""What an update of the histories has to add and to rebuild: by the change data feed, else by a window. Driver only."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from pyspark.sql import DataFrame, SparkSession

from gesr_core.config import Config
from gesr_core.dates import request_time_us, shift_ds
from gesr_core.io.changes import read_changes
from gesr_core.io.histories import UpdateInputs
from gesr_core.join import histories as join
from gesr_core.names import Role

log = logging.getLogger("update_histories")


def find_changes(
    spark: SparkSession, config: Config, inputs: UpdateInputs, histories: DataFrame, *, cached: ExitStack
) -> tuple[DataFrame, DataFrame | None]:
    """Return the events to add to the histories, and the users (user_id) to rebuild, None when there are none.

    Runs a Spark job. `cached` frees what was persisted for it.
    """
    standing, wanted = inputs.standing, inputs.wanted
    since_us, until_us = request_time_us(standing.as_of), request_time_us(wanted.as_of)
    if inputs.has_change_feed:
        versions = {"after": standing.events_version, "upto": wanted.events_version}
        changes = read_changes(spark, config.table(Role.EVENTS), **versions)
        net = join.net_changes(changes, before_us=since_us).persist()
        cached.callback(net.unpersist)
        fresh = join.events_between(inputs.events, since_us=since_us, before_us=until_us).unionByName(join.arrived(net))
        corrected = join.corrected_users(net)
    else:
        since_us = request_time_us(shift_ds(standing.as_of, days=-config.histories.late_window_days))
        fresh = join.events_between(inputs.events, since_us=since_us, before_us=until_us)
        corrected = join.corrected_in_window(histories, fresh, since_us=since_us)
    corrected = corrected.persist()
    cached.callback(corrected.unpersist)
    count = corrected.count()
    log.info("%d users lost an event that their history may hold: rebuilt from events", count)
    # Without any, `events` need not be read from end to end.
    return fresh, corrected if count else None
