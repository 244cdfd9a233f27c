"""Named points where a fault test can stop, kill or deceive the process. Runs anywhere; does nothing unless asked to.

`GESR_FAILPOINT=before_publish:stop` stops the process there with SIGSTOP (until SIGCONT); `:kill` kills its whole
process group, JVM included, with SIGKILL, `after_wave_1+250:kill` 250 ms later, whatever it does by then; `:lose` loses
the answer of what was just done, as a broken connection does.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import Final

VARIABLE: Final = "GESR_FAILPOINT"
_FORM: Final = re.compile(r"(?P<name>\w+)(?:\+(?P<ms>\d+))?:(?P<action>stop|kill|lose)")


def reach(name: str) -> None:
    """Note that `name` was reached; stop, kill or deceive the process when the environment asks for it here.

    Raises:
        ConnectionResetError: the answer was to be lost.
        ValueError: the environment asks for something else.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    found = _FORM.fullmatch(asked)
    if found is None:
        raise ValueError(f"{VARIABLE}: expected NAME:stop, NAME:kill, NAME+MS:kill or NAME:lose, got {asked!r}")
    if found["name"] != name:
        return
    if found["action"] == "stop":
        # The driver's JVM goes on: what sleeps is the code that decides.
        os.kill(os.getpid(), signal.SIGSTOP)
    elif found["action"] == "lose":
        raise ConnectionResetError(f"the answer was lost at {name}")
    elif found["ms"]:
        timer = threading.Timer(int(found["ms"]) / 1000, _kill)
        timer.daemon = True
        timer.start()
    else:
        _kill()


def _kill() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)
