"""Take each mechanism out, in a copy of the project, and see the test fail that provokes what it guards against.

`python -m tests.mechanisms [NAME ...]`: not a test itself, for it takes long; run it when a mechanism or its test
changes. Ends with exit code 1 when a test passed without its mechanism.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mechanism:
    """What is taken out (file, text, what stands there instead), and the test that must fail then."""

    name: str
    out: tuple[tuple[str, str, str], ...]
    test: str


_FAULTS, _JOBS = "tests/gesr_core/test_daily_faults.py", "tests/jobs/test_job_faults.py"
_KILLED = f"{_FAULTS}::test_runs_killed_anywhere_leave_readers_the_old_or_the_new_day_and_are_resumed_to_the_same_bits"
# Both the fence and the look before it: either alone holds in most cases.
_NO_FENCE = (
    "gesr_core/sink/tables.py",
    'return writer if txn is None else writer.option("txnAppId", txn[0]).option("txnVersion", txn[1])',
    "return writer",
)
# Each attempt of a task appends its rows to a folder of plain Parquet as it goes, and the folder becomes the wave.
_PLAIN_APPEND = (
    (
        "gesr_core/runtime/worker.py",
        "        scored = task_scorer(self, gpu=gpu).score(batches)\n",
        "        import tempfile, uuid\n"
        "        import pyarrow.parquet\n"
        "        scored = list(task_scorer(self, gpu=gpu).score(batches))\n"
        "        for batch in scored:\n"
        "            name = f'{tempfile.gettempdir()}/gesr_plain_append/{uuid.uuid4().hex}.parquet'\n"
        "            pyarrow.parquet.write_table(pa.Table.from_batches([batch]), name)\n"
        "        scored = iter(scored)\n",
    ),
    (
        "gesr_core/sink/staging.py",
        "    rows = scored.withColumns(",
        "    import pathlib, shutil, tempfile\n"
        "    folder = pathlib.Path(tempfile.gettempdir(), 'gesr_plain_append')\n"
        "    shutil.rmtree(folder, ignore_errors=True)\n"
        "    folder.mkdir()\n"
        "    scored.write.format('noop').mode('overwrite').save()\n"
        "    scored = scored.sparkSession.read.schema(scored.schema).parquet(str(folder))\n"
        "    rows = scored.withColumns(",
    ),
)
_LOST = "tests/gesr_core/test_lost_parts.py"
MECHANISMS = (
    Mechanism(
        "of a task's attempts one commits (speculation)",
        _PLAIN_APPEND,
        f"{_LOST}::test_a_speculative_copy_never_doubles_a_row",
    ),
    Mechanism(
        "of a task's attempts one commits (a lost worker)",
        _PLAIN_APPEND,
        f"{_LOST}::test_what_is_lost_is_run_again_to_the_same_table",
    ),
    Mechanism(
        "memory that runs out is borne",
        (("gesr_core/runtime/scorer.py", "isinstance(error, torch.OutOfMemoryError) or ", ""),),
        f"{_LOST}::test_memory_that_runs_out_at_seeded_calls_changes_rounding_alone",
    ),
    Mechanism(
        "pairs add up",
        (("gesr_core/sink/gate.py", 'value, "0", ok, _AGAIN)', 'value, "0", True, _AGAIN)'),),
        "tests/gesr_core/sink/test_gate.py",
    ),
    Mechanism(
        "files of a checkpoint are compared with their hashes",
        (("gesr_core/content.py", "if found != expected:", "if False:"),),
        "tests/gesr_core/training/test_checkpoint.py",
    ),
    Mechanism(
        "only accepted attempts count",
        (
            (
                "gesr_core/sink/staging.py",
                "(F.col(Col.WORK_ID) == work_id) & of_attempt",
                "F.col(Col.WORK_ID) == work_id",
            ),
        ),
        f"{_KILLED}[scoring]",
    ),
    Mechanism(
        "a resume takes accepted shards over",
        (
            (
                "gesr_core/daily/run.py",
                "return accepted_shards(self.day.ledger(), self.run.work_id",
                "own = [row for row in self.day.ledger() if row.run_id == self.run.run_id]\n"
                "        return accepted_shards(own, self.run.work_id",
            ),
        ),
        f"{_KILLED}[scoring]",
    ),
    Mechanism(
        "one commit replaces the day",
        (
            (
                "gesr_core/sink/publish.py",
                "        replace_where(\n            placed,",
                "        from delta.tables import DeltaTable\n"
                "        import time\n"
                "        DeltaTable.forPath(rows.sparkSession, ref.location).delete(f\"ds = '{run.ds}'\")\n"
                "        time.sleep(1)\n"
                "        replace_where(\n            placed,",
            ),
        ),
        f"{_KILLED}[publishing]",
    ),
    Mechanism(
        "quarantine is written once",
        (("gesr_core/sink/publish.py", ', txn=(f"gesr/quarantine/{run.run_id}", 1)', ""),),
        f"{_KILLED}[publishing]",
    ),
    Mechanism(
        "the same answer of the gate is recorded once",
        (
            (
                "gesr_core/daily/run.py",
                "if newest is not None and (newest.kind, newest.details) == (kind, said):",
                "if False:",
            ),
        ),
        f"{_KILLED}[publishing]",
    ),
    Mechanism(
        "the fence of a publication",
        (
            _NO_FENCE,
            (
                "gesr_core/sink/publish.py",
                "if standing is not None and standing.generation > run.generation and standing.run_id != run.run_id:",
                "if False:",
            ),
        ),
        f"{_FAULTS}::test_a_run_that_slept_through_a_replacement_changes_nothing_when_it_wakes",
    ),
    Mechanism(
        "what stands decides when an answer is lost",
        (("gesr_core/sink/commits.py", "            if not stands():\n                raise", "            raise"),),
        f"{_FAULTS}::test_a_publication_whose_answer_was_lost_is_recognised",
    ),
    Mechanism(
        "conflicts are tried again",
        (("gesr_core/sink/commits.py", "_ATTEMPTS: Final = 6", "_ATTEMPTS: Final = 1"),),
        f"{_FAULTS}::test_a_compaction_in_the_middle_of_a_publication_costs_it_a_second_try",
    ),
    Mechanism(
        "a refusal is answered again",
        (
            (
                "gesr_core/daily/opening.py",
                '    raise GateRefused("; ".join(check.explained for check in standing))',
                "    return",
            ),
        ),
        "tests/gesr_core/test_daily_gate.py::test_a_retry_of_what_was_refused_ends_at_once_with_the_same_answer",
    ),
    Mechanism(
        "scores are compared with those of the same checkpoint alone",
        (
            (
                "gesr_core/sink/ledger.py",
                '"$.pins.checkpoint.id") == checkpoint_id',
                '"$.pins.checkpoint.id").isNotNull()',
            ),
        ),
        "tests/gesr_core/test_daily_gate.py::"
        "test_scores_that_moved_since_the_ds_before_are_refused_and_a_new_model_is_not_refused_for_being_one",
    ),
    Mechanism(
        "a table that was made anew has another id",
        (
            (
                "gesr_core/sink/run.py",
                "(known.location, known.version, known.table_id) == (location, version, table_id)",
                "(known.location, known.version) == (location, version)",
            ),
        ),
        "tests/gesr_core/test_daily.py::test_candidates_that_were_made_anew_are_not_taken_for_those_of_before",
    ),
    Mechanism(
        "a replay repeats the halvings",
        (("gesr_core/daily/replay.py", "replace(pinned.task, halved=recorded.work.halved)", "pinned.task"),),
        "tests/jobs/test_replay.py::test_a_replay_repeats_the_halvings",
    ),
    Mechanism(
        "the fence of histories",
        (_NO_FENCE, ("gesr_core/sink/histories.py", "if rivals and not stands():", "if False:")),
        f"{_JOBS}::test_of_two_rebuilds_of_an_older_day_at_once_one_wins",
    ),
    Mechanism(
        "the fence of a day's update",
        (
            ("gesr_core/sink/histories.py", '**{f"spark.databricks.delta.write.{k}": v for k, v in fence.items()}', ""),
            ("gesr_core/sink/histories.py", "if rivals and not stands():", "if False:"),
        ),
        f"{_JOBS}::test_of_two_updates_of_histories_at_once_one_wins_also_beside_a_compaction",
    ),
    Mechanism(
        "a lock spans each commit to a local folder",
        (
            (
                "gesr_core/sink/tables.py",
                "    with commit_lock(ref):\n        if check is not None:",
                "    if True:\n        if check is not None:",
            ),
        ),
        "tests/gesr_core/sink/test_tables.py::test_commits_wait_for_whoever_holds_the_lock",
    ),
    Mechanism(
        "a pinned input that was vacuumed is told from other errors",
        (("gesr_core/daily/pinning.py", "if not files_are_gone(err):", "if True:"),),
        "tests/gesr_core/test_daily.py::"
        "test_a_run_whose_inputs_were_vacuumed_is_begun_anew_and_what_it_published_cannot_be_replayed",
    ),
    Mechanism(
        "the fence of partitions",
        (_NO_FENCE, ("gesr_core/sink/provenance.py", "if found is not None:", "if False:")),
        f"{_JOBS}::test_metrics_are_written_once_whatever_happens_to_a_run",
    ),
    Mechanism(
        "a table's version is read before what its rows are made from",
        (
            (
                "gesr_core/sink/metrics.py",
                "from_version=max(0, from_version)",
                "from_version=newest_version(spark, ref)",
            ),
            ("gesr_core/sink/metrics.py", "import create_table", "import create_table, newest_version"),
        ),
        f"{_JOBS}::test_metrics_that_another_run_wrote_since_the_events_were_read_stay",
    ),
    Mechanism(
        "item states are not moved back",
        (("gesr_core/runtime/item_states.py", "if newest not in (former, path.name):", "if False:"),),
        f"{_JOBS}::test_an_export_that_was_killed_or_slept_leaves_what_is_current",
    ),
    Mechanism(
        "a checkpoint of an older day is not the newest",
        (("gesr_core/training/checkpoint.py", "and _learned_until(newest) > _learned_until(path)", "and False"),),
        "tests/gesr_core/training/test_checkpoint.py::test_a_checkpoint_of_an_older_day_does_not_become_the_newest",
    ),
    Mechanism(
        "an alias is pinned",
        (("gesr_core/daily/opening.py", "    if asked.is_registered and not args.replace:\n", "    if False:\n"),),
        "tests/gesr_core/training/test_registry.py::test_an_alias_that_moves_before_a_resume_changes_nothing",
    ),
    Mechanism(
        "fetched files are compared with their hashes",
        (("gesr_core/training/registry.py", "        _require_checkpoint(draft, version)\n", ""),),
        "tests/gesr_core/training/test_registry.py::test_files_that_are_not_the_checkpoint_are_refused",
    ),
    Mechanism(
        "the ledger keeps what stands",
        (("gesr_core/sink/maintenance.py", " & ~kept & ", " & "),),
        "tests/jobs/test_maintain.py::test_it_compacts_prunes_and_vacuums_and_a_replay_is_missed_by_name",
    ),
    Mechanism(
        "secrets are masked",
        (("gesr_core/secrets.py", "        text = pattern.sub(hidden, text)", "        pass"),),
        "tests/gesr_core/test_secrets.py::test_a_job_logs_no_secret_of_its_command_line_nor_of_a_traceback",
    ),
)


def fails_without(mechanism: Mechanism) -> str | None:
    """Run the test without the mechanism; return why it failed, None where it passed all the same."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("var", ".venv", ".git", "__pycache__", ".*_cache"))
        for name, text, instead in mechanism.out:
            source = (copy / name).read_text()
            if text not in source:
                raise ValueError(f"{mechanism.name}: {name} does not hold {text!r} any more")
            (copy / name).write_text(source.replace(text, instead))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", mechanism.test],
            cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode not in (0, 1) or "Timeout" in done.stdout or "ERROR at setup" in done.stdout:
        raise ValueError(
            f"{mechanism.name}: pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    said = [line[2:].strip() for line in done.stdout.splitlines() if line.startswith("E  ")]
    # Where a job's log is told, its last line names the error.
    named = [line for line in said if re.match(r"[\w.]*(Error|Refused|Won)\b", line)]
    return (named[-1:] or said[:1] or ["it failed"])[0] if done.returncode else None


def main(names: Sequence[str]) -> int:
    """Try the named mechanisms, or all; return how many tests passed without theirs."""
    passed = 0
    for mechanism in MECHANISMS:
        if names and not any(name in mechanism.name for name in names):
            continue
        why = fails_without(mechanism)
        passed += why is None
        print(
            f"{'NOT SEEN TO FAIL' if why is None else 'seen to fail'}: without {mechanism.name!r}: {why or ''}",
            flush=True,
        )
    return passed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
