"""What a log may not hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gesr_core.secrets import masked

SECRET = "Zm9vYmFyL3NlY3JldA=="


@pytest.mark.parametrize(
    "text",
    [
        f"spark.hadoop.fs.s3a.secret.key={SECRET}",
        f"spark.hadoop.fs.s3a.access.key: {SECRET}",
        f"{{'spark.hadoop.fs.azure.account.key.store.dfs.core.windows.net': '{SECRET}'}}",
        f"cannot read https://user:{SECRET}@host/table",
        f"cannot read https://:{SECRET}@host/table",
        f"wasbs://box@store/table?sv=2020&sig={SECRET}&x=1",
        f'{{"token": "{SECRET}", "other": 1}}',
        f"MLFLOW_TRACKING_PASSWORD={SECRET}",
        f"https://host/?access_token={SECRET}",
        f"https://bucket.store/x?X-Amz-Signature={SECRET}&X-Amz-Date=1",
        f"https://host/?api_key={SECRET}",
        f"cannot read https://{SECRET}@host/table",
        f"cannot read s3a://me:wJalr/{SECRET}@bucket/table",
        f"Authorization: Bearer {SECRET}",
        f"sent 'bearer {SECRET}'",
        f"password='two {SECRET} words'",
    ],
)
def test_secrets_are_masked_and_the_rest_stays(text: str) -> None:
    found = masked(text)
    assert SECRET not in found
    assert "***" in found
    assert masked(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "shards 2/6, 1,000 pairs scored, 812 pairs/s, about 4 s left",
        "candidates: 24 rows, version 1 of s3a://bucket/ranking/candidates",
        "staging: version 3 of abfss://box@store.dfs.core.windows.net/ranking/staging",
        "reading hdfs://master:8020/ranking/scores, then s3a://bucket/x",
        "the signature of the function takes a basic set; it bears on the rest",
        "item tokens: 12 of 40; the key is user_id: 7",
        "histories stand at 2024-03-10, not at 2024-03-11: run jobs/update_histories.py --ds 2024-03-11",
    ],
)
def test_ordinary_lines_stay_as_they_are(text: str) -> None:
    assert masked(text) == text


def test_a_job_logs_no_secret_of_its_command_line_nor_of_a_traceback() -> None:
    code = (
        "import logging\nfrom gesr_core.entry import run_job\n"
        "def main(argv):\n"
        f"    logging.info('reading %s', 's3a://me:{SECRET}@bucket/x')\n"
        f"    raise RuntimeError('fs.s3a.secret.key={SECRET}')\n"
        "run_job(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 1
    assert "reading s3a://***@bucket/x" in done.stderr
    assert SECRET not in done.stderr + done.stdout
