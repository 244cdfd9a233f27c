"""The page from made-up facts: what is on it, what is escaped, and that nothing leads out of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from markupsafe import escape

pytest.importorskip("matplotlib", reason="the petastorm set draws nothing")

from gesr_core.report.page import render
from gesr_core.report.samples import USERS
from tests.reports import EVIL, OTHER, RUN, made_up_report, not_evaluated

VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "rect"}


class Page(HTMLParser):
    """Every element with its attributes and those around it, the texts, and the ids."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values, tuple(self._open)))
        if tag not in VOID:
            self._open.append(f"{tag}.{values.get('class') or ''}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop().startswith(f"{tag}."), f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def whole() -> str:
    return render(made_up_report())


@pytest.fixture(scope="module")
def bare() -> str:
    return render(not_evaluated())


def test_the_page_is_well_formed_and_each_id_stands_once(whole: str, bare: str) -> None:
    for page in (Page(whole), Page(bare)):
        ids = [values["id"] for _, values, _ in page.elements if "id" in values]
        assert len(ids) == len(set(ids))
        assert not page._open


def test_names_are_text_wherever_they_stand(whole: str) -> None:
    page = Page(whole)
    assert not [tag for tag, _, _ in page.elements if tag in ("script", "img")]
    assert not [name for _, values, _ in page.elements for name in values if name.startswith("on")]
    # A user, an item, a feature, a segment, a reason and a location.
    for element in ("summary", "td", "p", "code"):
        assert re.search(rf"<{element}[^>]*>[^<]*{re.escape(escape(EVIL))}", whole), element
    assert sum(EVIL in " ".join(text.split()) for text in page.texts) >= 6


def test_nothing_leads_out_of_the_page(whole: str, bare: str) -> None:
    for text in (whole, bare):
        for tag, values, _ in Page(text).elements:
            for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
                value = values.get(name) or "#"
                assert value.startswith("#") or value == "data:,", f"{tag} {name}={value}"
        outside = re.sub(re.escape("https://example.org/a.png"), "", text)
        assert "http:" not in outside
        assert "https:" not in outside
        assert "@import" not in text
        assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", text))


def test_every_figure_has_a_title_axis_labels_and_words(whole: str) -> None:
    drawn = re.findall(r'<figure id="figure-(\w+)">(.*?)</figure>', whole, re.DOTALL)
    assert [name for name, _ in drawn] == [
        "stages", "shards", "scores", "orderings", "segments", "calibration", "runs",
    ]  # fmt: skip
    labels = {
        "stages": ("Workers' time by stage", "seconds, all workers added up", "stage"),
        "shards": ("Pairs and seconds by shard", "pairs", "workers' seconds", "shard (number)"),
        "scores": ("Scores of the ranked pairs", "score (no unit", "share of ranked pairs below", "2024-03-08 (other"),
        "calibration": ("Calibration of the published pairs", "predicted rate", "observed rate", "model"),
        "orderings": ("NDCG by ordering", "metric and cut", "ndcg@50", "retrieval_order"),
        "segments": ("ndcg@10 by segment", "segment", "95 % interval", "history_length:1-9"),
        "runs": ("ndcg@10 by publication", "publication", "95 % interval", "two_tower scores_chal"),
    }
    for name, body in drawn:
        page = Page(body)
        [svg] = [values for tag, values, _ in page.elements if tag == "svg"]
        assert svg["role"] == "img"
        assert len(svg["aria-label"] or "") > 30
        for label in labels[name]:
            assert label in page.text, (name, label)
        assert "currentcolor" in body.lower()
        assert not re.search(r"#0102\d\d", body), "a stand-in colour was left"
        assert "mathdefault" not in body, "a tick is a formula"


def test_every_table_scrolls_by_itself(whole: str) -> None:
    around = [place for tag, _, place in Page(whole).elements if tag == "table"]
    assert len(around) > 10
    assert all(place[-1] == "div.scroll" for place in around)


def test_the_page_tells_the_facts(whole: str) -> None:
    text = Page(whole).text
    for fact in (
        "Generation 2", RUN, "run-that-was-killed", "pyspark 4.1.4", "2024-03-10 12:00:00 UTC", "42.0 s",
        "largest absolute score", "overruled", "1 overruled", "unknown_item", "rank 4", "a candidate, not published",
        "not retrieved", "2024-03-10 to 2024-03-17", "the newest 20", "the first 20", "0.1300 0.1200 to 0.1400",
    ):  # fmt: skip
        assert fact in text, fact
    # Intervals, drift, and a difference with its interval.
    assert "0.0200 0.0050 to 0.0350" in text
    assert "score_psi" in text


def test_what_is_measured_on_own_pairs_is_not_compared_between_publications(whole: str) -> None:
    section = Page(whole[whole.index('<section id="runs">') : whole.index('<section id="quarantine">')]).text
    heads = section[section.index("publication ndcg@10 ndcg") : section.index("gesr in scores (run-of) 0.")]
    assert heads.split() == ["publication", "ndcg@10", "ndcg@50", "recall@10", "recall@50", "survival@50", "n"]
    assert OTHER in section


def test_a_day_that_is_not_evaluated_says_so_and_how(bare: str) -> None:
    text = Page(bare).text
    assert "This publication is not evaluated yet" in text
    assert "spark-submit jobs/evaluate.py --ds 2024-03-10 --env prod then write this page again" in text
    assert "Nothing was rejected." in text
    assert "a vacuum came between" in text
    assert "No earlier ds of this target" in text
    assert "To compare models, score the same ds to a target of its own" in text
    assert "in history" not in text


def test_the_same_facts_give_the_same_page(whole: str) -> None:
    assert render(made_up_report()) == whole


def test_ten_users_are_shown() -> None:
    assert USERS == 10
