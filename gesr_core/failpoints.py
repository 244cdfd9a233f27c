"""Named points at which a fault test can stop or kill the process. Runs anywhere; does nothing unless asked to.

`GESR_FAILPOINT=before_publish:stop` stops the process there with SIGSTOP (until SIGCONT); `:kill` kills its whole
process group, JVM included, with SIGKILL; `after_wave_2:kill` waits for the second wave.
"""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "GESR_FAILPOINT"


def reach(name: str) -> None:
    """Note that `name` was reached; stop or kill the process when the environment asks for it here."""
    point, _, action = os.environ.get(VARIABLE, "").partition(":")
    if point != name:
        return
    if action == "stop":
        # The driver's JVM goes on: what sleeps is the code that decides.
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "kill":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    else:
        raise ValueError(f"{VARIABLE}: expected NAME:stop or NAME:kill, got {os.environ[VARIABLE]!r}")
