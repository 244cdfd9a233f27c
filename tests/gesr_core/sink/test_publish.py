"""What a publication does when Delta reports a conflict; no JVM: the commit is a stand-in."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from delta.exceptions import ConcurrentAppendException, MetadataChangedException, ProtocolChangedException

from gesr_core.config import TableRef
from gesr_core.errors import AnotherRunWon, GesrError
from gesr_core.sink import commits, publish as module
from gesr_core.sink.run import Pins, Publication, Run

RUN = Run("2024-03-10", "scores", "ours", 0, Pins({}, {"id": "c"}, {}, "h", {}))


def attempts(
    monkeypatch: pytest.MonkeyPatch, outcomes: list[Exception | None], *, lost: bool = False
) -> list[Publication]:
    """Let each commit fail with the next of the outcomes, or succeed; return what stands afterwards.

    Where answers are `lost`, a commit that fails was made all the same.
    """
    standing: list[Publication] = []

    def commit(*_: Any, **__: Any) -> None:
        outcome = outcomes.pop(0)
        if outcome is None or lost:
            standing.append(Publication(1, "ours"))
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(module, "replace_where", commit)
    monkeypatch.setattr(module, "score_rows", lambda *_, **__: MagicMock())
    monkeypatch.setattr(commits.time, "sleep", lambda _: None)
    return standing


def publish(standing: list[Publication]) -> int:
    ref = TableRef("scores", "/x/scores", {})
    read = lambda: standing[-1] if standing else None  # noqa: E731
    return module.publish(MagicMock(), ref, RUN, manifest={}, read=read, output_files=1)


@pytest.mark.parametrize("conflict", [ConcurrentAppendException, ProtocolChangedException, MetadataChangedException])
def test_a_conflict_that_no_publisher_of_this_ds_caused_is_tried_again(
    conflict: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    standing = attempts(monkeypatch, [conflict("x"), conflict("x"), None])
    assert publish(standing) == 1


def test_conflicts_without_end_are_worth_a_later_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    standing = attempts(monkeypatch, [ConcurrentAppendException("x")] * 6)
    with pytest.raises(GesrError, match="6 commits in a row met a conflict"):
        publish(standing)


def test_a_conflict_with_another_publisher_of_this_ds_ends_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    standing = attempts(monkeypatch, [ConcurrentAppendException("x")])
    monkeypatch.setattr(commits.time, "sleep", lambda _: standing.append(Publication(1, "theirs")))
    with pytest.raises(AnotherRunWon, match="holds run theirs"):
        publish(standing)


@pytest.mark.parametrize("answer", [ConnectionResetError("gone"), ConcurrentAppendException("with itself")])
def test_a_commit_whose_answer_was_lost_is_recognised(answer: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Exception | None] = [answer, None]
    standing = attempts(monkeypatch, outcomes, lost=True)
    assert publish(standing) == 1
    assert {publication.run_id for publication in standing} == {"ours"}
    # Of a conflict it cannot be told: it is tried again, and Delta skips what the fence knows.
    assert len(standing) == (2 if isinstance(answer, ConcurrentAppendException) else 1)


def test_a_commit_that_failed_for_another_reason_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    standing = attempts(monkeypatch, [OSError("no space left")])
    with pytest.raises(OSError, match="no space left"):
        publish(standing)
    assert not standing
