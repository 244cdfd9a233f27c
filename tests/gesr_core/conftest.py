"""Settings of the property tests: no deadline, because a busy machine is no bug; the same examples every time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gesr", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("gesr")
