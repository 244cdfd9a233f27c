"""Which device a worker has, and what it says where it has not the wanted one."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from gesr_core.errors import ConfigurationError
from gesr_core.runtime.device import Sizes, WorkerDevice, choose_device, fitting_sizes, report_device

ONE_ROW = pa.RecordBatch.from_pydict({"id": [0]})


def test_a_worker_reports_its_device() -> None:
    [row] = list(report_device(iter([ONE_ROW]), wanted="cpu"))
    assert row.to_pylist() == [{"device": "cpu", "free_bytes": None, "error": None}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error_and_never_the_cpu_in_silence() -> None:
    with pytest.raises(ConfigurationError, match="torch sees no GPU"):
        choose_device("cuda")
    [row] = list(report_device(iter([ONE_ROW]), wanted="cuda"))
    assert row.column("device")[0].as_py() is None
    assert "torch sees no GPU" in row.column("error")[0].as_py()


def test_workers_that_share_a_gpu_divide_its_memory() -> None:
    gpu = WorkerDevice("cuda", free_bytes=40 << 30)
    alone, of_two = (fitting_sizes(gpu, workers=workers, item_table_bytes=1 << 30) for workers in (1, 2))
    assert alone.batch_bytes == int(0.8 * (40 << 30)) - (1 << 30)
    assert of_two.batch_bytes == int(0.8 * (20 << 30)) - (1 << 30)
    # A few megabytes more or less are free each night: the same plan.
    assert fitting_sizes(WorkerDevice("cuda", (40 << 30) + 12_345), workers=1, item_table_bytes=1 << 30) == alone


def test_an_item_table_beyond_half_the_memory_stays_with_the_host() -> None:
    sizes = fitting_sizes(WorkerDevice("cuda", free_bytes=10 << 30), workers=1, item_table_bytes=6 << 30)
    assert sizes.item_table_bytes is not None
    assert sizes.item_table_bytes < 6 << 30
    assert sizes.batch_bytes == int(0.8 * (10 << 30))


def test_a_cpu_is_bounded_by_its_cache() -> None:
    assert fitting_sizes(WorkerDevice("cpu"), workers=1, item_table_bytes=1) == Sizes(4096, batch_bytes=64 << 20)
