"""What becomes of a task when its job failed: retried, or failed at once. The codes: docs/operations.md."""

from __future__ import annotations

import re
from typing import Final, NoReturn

from airflow.sdk.exceptions import AirflowException, AirflowFailException

# Exit code -> the error that every job names at the start of its last line. A retry cannot help.
FINAL: Final = {2: "ConfigurationError", 3: "InputError", 4: "GateRefused", 5: "AnotherRunWon"}
# What a shell answers where there is no such command, or it may not be run.
NOT_STARTED: Final = (126, 127)
# How SparkSubmitOperator tells of the code, in the text of its exception alone.
_SPARK_PROVIDER: Final = re.compile(r"Error code is: (\d+)\.")
# How the last line of a job comes to us where only its text does.
_NAMED: Final = re.compile(rf"\b({'|'.join(FINAL.values())}): [^'\"\n]*")


def conclude(exit_code: int, last_line: str) -> None:
    """Return when the job did its work.

    Raises:
        AirflowFailException: the job refused (configuration, input, gate, another run won), or could not be started.
        AirflowException: anything else, a lost process too (a negative code, or above 128): worth a retry.
    """
    if exit_code in FINAL or exit_code in NOT_STARTED:
        raise AirflowFailException(f"exit code {exit_code}, not tried again. The job's last line: {last_line}")
    if exit_code:
        raise AirflowException(f"exit code {exit_code}, worth a retry. The job's last line: {last_line}")


def explain(error: Exception, *, refusal: str | None) -> NoReturn:
    """End a task whose operator lost the job's exit code, by what the operator said and by the ledger's `refusal`.

    Raises:
        AirflowFailException: one of both names a refusal.
        Exception: the operator's own error, else: worth a retry.
    """
    text = str(error)
    if code := _SPARK_PROVIDER.search(text):
        if int(code[1]) in FINAL:
            name = FINAL[int(code[1])]
            raise AirflowFailException(f"exit code {code[1]} ({name}), not tried again: {refusal or text}") from error
    elif named := _NAMED.search(text):
        raise AirflowFailException(f"not tried again. The job's last line: {named[0]}") from error
    if refusal:
        raise AirflowFailException(f"not tried again. The ledger says: {refusal}") from error
    raise error
