"""A made-up report with everything on it, and names that would do harm where they were not escaped."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace

from gesr_core.report.facts import (
    Check,
    Event,
    Input,
    MetricRow,
    Purchase,
    Ranked,
    Rejected,
    Report,
    RunBeside,
    RunFacts,
    Samples,
    SampleUser,
    Scores,
    Shard,
    Step,
    Took,
    took_together,
)

DS = "2024-03-10"
RUN, OTHER = "run-of-champion", "run-of-challenger"
EVIL = "<script>alert('x')</script> & \"$x_1^2$\" <img src=https://example.org/a.png onerror=alert(1)>"
NOON = dt.datetime(2024, 3, 10, 12, tzinfo=dt.timezone.utc)
SEGMENTS = (
    "all",
    "without_top_item",
    "history_length:10-49",
    "history_length:1-9",
    "history_length:0",
    "source:own",
    f"user.age_group:{EVIL}",
)


def made_up_report() -> Report:
    """A day with two evaluated publications, two former ds, everything measured, and users of every kind."""
    shards = tuple(_shard(number) for number in range(6))
    return Report(
        ds=DS,
        target="scores",
        env="prod",
        made_at=NOON,
        run=_run(),
        counts={"users": 60, "candidates_in": 6200, "candidates_scored": 6000, "candidates_rejected": 200},
        steps=(Step("scoring, 6 shards of this run", 42.0), Step("gate", 2.5)),
        took=took_together(shards),
        shards=shards,
        checks=(
            Check("largest absolute score", "12.5", "100", "ok"),
            Check("share of candidates quarantined", "0.032", "0.01", "overruled"),
        ),
        scores=(_scores("2024-03-08", 0.0, "older"), _scores("2024-03-09", 0.1, "c1"), _scores(DS, 0.3, "c1")),
        metrics=tuple(metric_rows()),
        beside=(
            RunBeside(RUN, "scores", "gesr", "c1", 2),
            RunBeside(OTHER, "scores_challenger", "two_tower", "c2", 1),
            RunBeside("unknown", None, None, None, None),
        ),
        rejected=(Rejected("candidates", "unknown_item", 190, 50), Rejected("candidates", EVIL, 10, 3)),
        samples=Samples(
            task="bought", window=(DS, "2024-03-17"), events_until=NOON + dt.timedelta(days=9), users=_users()
        ),
    )


def not_evaluated() -> Report:
    """The same day with nothing but what a run leaves: no metrics, no earlier day, no users whose history is left."""
    whole = made_up_report()
    users = tuple(
        replace(
            user, features={}, history=(), history_events=None, candidates=None, purchases=(),
            ranked=tuple(replace(pair, sources=None, times_in_history=None, bought=False) for pair in user.ranked),
        )
        for user in whole.samples.users
    )  # fmt: skip
    return replace(
        whole,
        metrics=(),
        beside=whole.beside[:1],
        scores=whole.scores[-1:],
        rejected=(),
        samples=replace(whole.samples, users=users, events_until=None, lost="a vacuum came between"),
    )


def metric_rows() -> Iterator[MetricRow]:
    """Rows under the names that evaluate writes."""
    for run, lift in ((RUN, 0.0), (OTHER, 0.02)):
        for place, segment in enumerate(SEGMENTS):
            for ordering, base in (("model", 0.12), ("retrieval_order", 0.09), ("popularity", 0.05), ("random", 0.01)):
                for k in (10, 50):
                    value = base + lift + 0.01 * place + k / 1000
                    yield MetricRow(run, ordering, "ndcg", k, segment, value, value - 0.01, value + 0.01, 900 - place)
                    yield MetricRow(run, ordering, "recall", k, segment, 2 * value, None, None, 900 - place)
                yield MetricRow(run, ordering, "auc", None, segment, 0.7, None, None, 6000)
            yield MetricRow(run, "model", "survival", 50, segment, 0.8, 0.75, 0.85, 1234)
        for number, predicted in enumerate((0.001, 0.01, 0.05, 0.2), start=1):
            yield MetricRow(run, "model", "calibration_predicted", number, "all", predicted, None, None, 1500)
            observed = predicted * 1.1
            yield MetricRow(
                run, "model", "calibration_observed", number, "all", observed, observed * 0.9, observed * 1.1, 1500
            )
    for ds, psi in (("2024-03-08", 0.11), ("2024-03-09", 0.02)):
        yield MetricRow(RUN, "model", "score_psi", None, f"against:{ds}", psi, None, None, 6000)
    yield MetricRow(OTHER, f"against:{RUN}", "ndcg_difference", 10, "all", 0.02, 0.005, 0.035, 900)


def _run() -> RunFacts:
    return RunFacts(
        run_id=RUN,
        generation=2,
        resumes="run-that-was-killed",
        model="gesr",
        checkpoint_id="c1",
        items_version="i1",
        configuration="f" * 64,
        inputs=(Input("candidates", 3, f"var/{EVIL}", 60), Input("users", 1, "var/users", None)),
        form="fp32, compile off",
        code="0.1.0+abc",
        versions={"pyspark": "4.1.4", "torch": "2.13.0"},
        devices=("cpu",),
        opened_at=NOON,
        published_at=NOON + dt.timedelta(seconds=50),
        elapsed_s=50.0,
    )


def _shard(number: int) -> Shard:
    stages = {"decode_s": 0.1, "compute_s": 1.0 + number, "encode_s": 0.1, "load_s": 0.5}
    took = Took(stages, 1000, 1250, 10, 2, 1, 0, 5_000_000, 1_000_000, 70_000_000 + number)
    return Shard(number, users=10, candidates=1030, parts=2 if number == 3 else 1, run_id=RUN, took=took)


def _scores(ds: str, moved: float, checkpoint_id: str) -> Scores:
    edges = tuple(moved + 0.25 * place for place in range(9))
    return Scores(ds, checkpoint_id, 6000, edges, (0.1,) * 10)


def _users() -> tuple[SampleUser, ...]:
    history = tuple(Event(NOON - dt.timedelta(days=day), "buy", f"i{day}", 10.5) for day in range(1, 21))
    ranked = tuple(
        Ranked(place, f"item {place} {EVIL}", 2.0 - place / 10, {"bought": -place / 10, "bought_high_spend": -1.0},
               "own, popular", place % 3, place == 4)
        for place in range(1, 21)
    )  # fmt: skip
    purchases = (Purchase(f"item 4 {EVIL}", 4, True), Purchase("below", None, True), Purchase("elsewhere", None, False))
    buyer = SampleUser(f"user {EVIL}", {"age_group": EVIL, "pin": ""}, history, 64, ranked, 100, 480, purchases)
    newcomer = SampleUser("newcomer", {}, (), 0, ranked[:1], 1, 1, ())
    return buyer, newcomer
