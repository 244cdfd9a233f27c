"""Fenced commits: tried until one stands, told by what stands and not by the answer. Driver only.

A commit that carries (application id, version) is skipped by Delta, in silence, once that application has committed
this version or a later one. So a commit may be tried again at will, and afterwards what stands there is read back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from delta.exceptions import (
    ConcurrentAppendException,
    ConcurrentDeleteDeleteException,
    ConcurrentDeleteReadException,
    ConcurrentTransactionException,
    ConcurrentWriteException,
    DeltaConcurrentModificationException,
    MetadataChangedException,
    ProtocolChangedException,
)

from gesr_core.errors import GesrError

log = logging.getLogger(__name__)

_ATTEMPTS: Final = 6
# delta-spark derives none of these from DeltaConcurrentModificationException.
CONFLICTS: Final = (
    ConcurrentAppendException,
    ConcurrentDeleteDeleteException,
    ConcurrentDeleteReadException,
    ConcurrentTransactionException,
    ConcurrentWriteException,
    DeltaConcurrentModificationException,
    MetadataChangedException,
    ProtocolChangedException,
)


def past_conflicts(commit: Callable[[], None], *, where: str, before: Callable[[], None] = lambda: None) -> None:
    """Commit, and commit again after a conflict, which says that nothing was committed.

    Args:
        commit: makes the commit.
        where: the table, for messages.
        before: is called before each attempt.

    Raises:
        GesrError: the conflicts did not end.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        before()
        try:
            commit()
            return
        except CONFLICTS as err:
            if attempt == _ATTEMPTS:
                raise GesrError(f"{where}: {attempt} commits in a row met a conflict; try again later") from err
            log.info("a concurrent commit got in the way (%s); committing again", type(err).__name__)
            time.sleep(0.5 * 2**attempt)


def commit_fenced(
    write: Callable[[], None], *, refuse_other: Callable[[], None], stands: Callable[[], bool], where: str
) -> None:
    """Commit until what was written stands.

    Args:
        write: makes the fenced commit.
        refuse_other: raises `AnotherRunWon` where another run's commit stands that the fence would keep ours from.
        stands: says whether ours stands.
        where: the table, for messages.

    Raises:
        AnotherRunWon: as `refuse_other` has it.
        GesrError: conflicts that no rival caused (a compaction, the first commits of a table) did not end.
    """

    def unless_unheard() -> None:
        try:
            write()
        except CONFLICTS:
            raise
        except Exception as err:
            # The commit may have been made and its answer lost: what stands decides.
            if not stands():
                raise
            log.warning("the commit to %s stands, though its answer was lost (%s)", where, _first_line(err))

    past_conflicts(unless_unheard, where=where, before=refuse_other)


def _first_line(err: Exception) -> str:
    return f"{type(err).__name__}: {err}".splitlines()[0]
