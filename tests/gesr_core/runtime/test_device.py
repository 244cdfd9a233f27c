"""Which device a worker has, and what it says where it has not the wanted one."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from gesr_core.errors import ConfigurationError
from gesr_core.runtime.device import choose_device, report_device

ONE_ROW = pa.RecordBatch.from_pydict({"id": [0]})


def test_a_worker_reports_its_device() -> None:
    [row] = list(report_device(iter([ONE_ROW]), wanted="cpu"))
    assert row.to_pylist() == [{"device": "cpu", "error": None}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error_and_never_the_cpu_in_silence() -> None:
    with pytest.raises(ConfigurationError, match="torch sees no GPU"):
        choose_device("cuda")
    [row] = list(report_device(iter([ONE_ROW]), wanted="cuda"))
    assert row.column("device")[0].as_py() is None
    assert "torch sees no GPU" in row.column("error")[0].as_py()
