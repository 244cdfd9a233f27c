"""Memory that was freed is kept: a block of the same size is not asked of the system again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Counts the pages that the system hands out for ten blocks, one after the other.
COUNT = """
import ctypes, resource, sys
from gesr_core.runtime.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def block():
    found = ctypes.c_void_p(libc.malloc(64 << 20))
    ctypes.memset(found, 1, 64 << 20)
    libc.free(found)
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block()
before = pages()
for _ in range(10):
    block()
print(pages() - before)
"""


def pages(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told")
def test_a_block_that_was_freed_is_not_asked_for_again() -> None:
    given_back = pages("default")
    # Ten times 64 MB, in pages of 2 MB at most.
    assert given_back >= 320
    assert pages("keep") < given_back // 20
