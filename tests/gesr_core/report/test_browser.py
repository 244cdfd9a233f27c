"""The page in a headless Chromium: it says nothing on the console, asks for nothing, draws all, and fits a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the petastorm set draws nothing")

from gesr_core.report.page import render
from tests.chromium import console_of, find_chromium, measured_in_frame
from tests.reports import made_up_report, not_evaluated

pytestmark = pytest.mark.slow

PHONE_PX, DESK_PX = 390, 1280
MEASURE = """
  const page = frame.document, root = page.documentElement;
  page.querySelectorAll("details").forEach((part) => part.open = true);
  const box = (element) => element.getBoundingClientRect();
  return {
    seen_px: frame.innerWidth,
    page_px: Math.max(root.scrollWidth, page.body.scrollWidth),
    requests: frame.performance.getEntriesByType("resource").map((entry) => entry.name),
    figures: [...page.querySelectorAll("figure svg")].map((svg) => ({
      name: svg.parentElement.id,
      width: box(svg).width, height: box(svg).height,
      paths: [...svg.querySelectorAll("path")].filter((path) => box(path).width + box(path).height > 0).length,
      letters_px: Math.min(...[...svg.querySelectorAll("text")].map((text) => box(text).height)),
      outside: [...svg.querySelectorAll("text")].filter((text) =>
        box(text).left < 0 || box(text).right > frame.innerWidth).map((text) => text.textContent),
      colour: frame.getComputedStyle(svg.querySelector("text")).fill,
    })),
    tables: [...page.querySelectorAll("table")].map((table) => ({
      overflows: box(table).width > box(table.parentElement).width + 1,
      scrolls: table.parentElement.scrollWidth > table.parentElement.clientWidth,
    })),
    ink: frame.getComputedStyle(page.body).color,
  };
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    return find_chromium()


@pytest.fixture(scope="module")
def page() -> str:
    return render(made_up_report())


@pytest.fixture(scope="module")
def on_a_phone(chromium: str, page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    measured, console = measured_in_frame(
        chromium, page, MEASURE, width=PHONE_PX, folder=tmp_path_factory.mktemp("phone")
    )
    assert console == []
    return dict(measured)


def test_opened_as_a_file_it_says_nothing_on_the_console(chromium: str, page: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    assert console_of(chromium, file, folder=tmp_path) == []


def test_it_asks_for_nothing(on_a_phone: dict[str, Any]) -> None:
    assert on_a_phone["requests"] == []


def test_every_figure_is_drawn_in_the_pages_colours(on_a_phone: dict[str, Any], page: str) -> None:
    figures = on_a_phone["figures"]
    assert len(figures) == page.count("<figure ") == 7
    for figure in figures:
        assert figure["width"] > 300, figure
        assert figure["height"] > 100, figure
        assert figure["paths"] > 10, figure
        assert figure["letters_px"] > 9, figure
        assert figure["colour"] == on_a_phone["ink"], figure
        assert not figure["outside"], figure


@pytest.mark.parametrize("evaluated", [True, False])
def test_on_a_phone_tables_scroll_and_the_page_does_not(
    chromium: str, tmp_path: Path, on_a_phone: dict[str, Any], evaluated: bool
) -> None:
    measured = on_a_phone
    if not evaluated:
        bare = render(not_evaluated())
        measured, _ = measured_in_frame(chromium, bare, MEASURE, width=PHONE_PX, folder=tmp_path)
    assert measured["seen_px"] == PHONE_PX
    assert measured["page_px"] <= PHONE_PX
    wide = [table for table in measured["tables"] if table["overflows"]]
    assert wide, "no table is wide enough to tell"
    assert all(table["scrolls"] for table in wide)


def test_on_a_desk_it_fits_too(chromium: str, page: str, tmp_path: Path) -> None:
    measured, _ = measured_in_frame(chromium, page, MEASURE, width=DESK_PX, folder=tmp_path)
    assert measured["page_px"] <= measured["seen_px"] == DESK_PX


def test_what_is_wrong_with_a_page_is_seen(chromium: str, tmp_path: Path) -> None:
    """The measures can fail: a page that is too wide, that asks for a picture and runs a script."""
    broken = (
        "<!doctype html><html><head><meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\"></head>"
        "<body><div style='width:900px'>wide</div><img src='https://example.invalid/a.png'><script>1</script>"
        "<figure id='f'><svg viewBox='0 0 1 1'><text>t</text></svg></figure></body></html>"
    )
    measured, console = measured_in_frame(chromium, broken, MEASURE, width=PHONE_PX, folder=tmp_path)
    # Its own rule also forbids the style, so the picture and the script alone are told.
    assert any("a.png" in line for line in console)
    assert any("script" in line for line in console)
    assert measured["figures"][0]["paths"] == 0
