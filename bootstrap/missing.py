"""What ends set-up: one line that names what is missing and the remedy. Driver side, standard library only."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

NO_NETWORK = re.compile(
    r"dns error|name resolution|name or service not known|nodename nor servname|"
    r"connection (refused|reset|error|broken)|"
    r"newconnectionerror|network is unreachable|network connectivity|timed? ?out|could not connect|failed to fetch|"
    r"unknownhostexception|host \S+ not found|temporary failure|tunnel connection failed",
    re.IGNORECASE,
)
DISK_FULL = re.compile(r"no space left on device|os error 28|errno 28|disk quota exceeded", re.IGNORECASE)


class Missing(Exception):
    """Something that set-up needs and cannot bring; its text is the one line that the user reads."""


def run_logged(command: Sequence[str | Path], *, log: Path, what: str, remedy: str, env: Mapping[str, str]) -> None:
    """Run a command with all of its output in `log`.

    `what` says in words what was to be done, `remedy` what a person does when there is no network.

    Raises:
        Missing: the command failed; the line names the reason, the remedy and the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    with log.open("w", encoding="utf-8") as out:
        code = subprocess.call(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=dict(env))
    if code:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise Missing(f"{what} failed: {reason(text, remedy=remedy)} (log: {shown(log)})")


def reason(output: str, *, remedy: str) -> str:
    """One line for a failed command's output: the cause where it is a known one, else its own last word on it."""
    if DISK_FULL.search(output):
        return "the disk is full: free about 7 GB, then run it again"
    if NO_NETWORK.search(output):
        return f"no network: {remedy}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "e:", "cause:", "exception"))]
    return (errors or lines or ["it said nothing"])[-1][:300]


def shown(path: Path) -> str:
    """A path as a person would type it here: relative to the project where it lies in it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
