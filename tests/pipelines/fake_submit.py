"""Stands in for spark-submit: notes the command line in $FAKE_SCRATCH/commands, ends as $FAKE_SCRATCH/codes/<job> says.

That file has one ending a line, and the first is taken away: an exit code, KILL for a SIGKILL, or HANG. No file: 0.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

scratch = Path(os.environ["FAKE_SCRATCH"])
words = sys.argv[1:]
place, job = next((at, found[1]) for at, word in enumerate(words) if (found := re.search(r"jobs/(\w+)\.py$", word)))
(scratch / "commands" / f"{time.time_ns()}").write_text(json.dumps([job, *words[place + 1 :]]))
told = scratch / "codes" / job
endings = told.read_text().split() if told.exists() else []
ending = endings.pop(0) if endings else "0"
told.write_text("\n".join(endings))
print(f"{job} works")
if ending == "KILL":
    os.kill(os.getpid(), signal.SIGKILL)
if ending == "HANG":
    (scratch / "hung").write_text(str(os.getpid()))
    time.sleep(600)
if ending != "0":
    print(f"SomeError: the last line of {job}", file=sys.stderr)
sys.exit(int(ending))
