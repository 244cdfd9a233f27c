"""A headless Chromium for tests that look at a page: found, or brought by the system's packages where we are root."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from bootstrap import debian
from bootstrap.stack import ROOT

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_LOG = ROOT / "var/setup/chromium.log"
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr")


def find_chromium() -> str:
    """Return the browser's path; skips the test where there is none and none can be brought, fails there under CI."""
    found = _on_path()
    if found is None and debian.can_install() and debian.install(["chromium"], log=_LOG):
        found = _on_path()
    if found is None:
        why = f"no Chromium is here, and none could be brought (apt-get install chromium; var/setup/{_LOG.name})"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(f"THE REPORT WAS NOT OPENED IN A BROWSER: {why}")
    return found


def measured_in_frame(chromium: str, page: str, script: str, *, width: int, folder: Path) -> tuple[Any, list[str]]:
    """Open a page in a frame of a given width, unchanged, and run a script beside it.

    A window is never narrower than 500 px, a frame is; and the page's own rules against scripts stay in force in it.

    Args:
        chromium: the browser.
        page: the HTML.
        script: the body of a function of `frame` (its window) that returns what JSON can hold.
        width: of the frame, in px.
        folder: an empty one, for the browser's files.

    Returns:
        What the script returned, and what stood on the console.
    """
    outer = folder / "outer.html"
    outer.write_text(
        f"""<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" style="width:{width}px;height:900px;border:0" srcdoc="{escape(page)}"></iframe>
<pre id="measured"></pre>
<script>
addEventListener("load", () => {{
  const measure = (frame) => {{ {script} }};
  const value = measure(document.getElementById("frame").contentWindow);
  document.getElementById("measured").textContent = JSON.stringify(value);
}});
</script>""",
        encoding="utf-8",
    )
    dom, console = _run(chromium, ["--window-size=1400,1000", "--dump-dom", outer.as_uri()], folder=folder)
    [text] = re.findall(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    return json.loads(unescape(text)), console


def console_of(chromium: str, page: Path, *, folder: Path) -> list[str]:
    """Open a file as a person does, and return what stood on the console."""
    _, console = _run(chromium, ["--window-size=1280,900", "--dump-dom", page.as_uri()], folder=folder)
    return console


def _run(chromium: str, words: list[str], *, folder: Path) -> tuple[str, list[str]]:
    profile = folder / "profile"
    command = [chromium, *_FLAGS, f"--user-data-dir={profile}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def _on_path() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)
