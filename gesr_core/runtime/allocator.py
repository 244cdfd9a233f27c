"""Keep memory that a micro-batch or a training step frees for the next one. Runs in workers and in training; no JVM."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final

# malloc.h: beyond these sizes glibc gives memory back to the system as soon as it is freed.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEEP_BYTES: Final = 1 << 30


@cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB that it freed; say whether its C library is glibc, the only one that is told.

    By default glibc gives large blocks back at once, and the system hands them out again page by page, zeroed: a third
    of a worker's time where that was measured (256 events, one candidate). The peak was about the same (1.0 GB).
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, _KEEP_BYTES) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
