"""The file itself: what a parser sees, what it weighs, and what is not in it."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from string import Formatter

import html5lib
import pytest

from helpers.pages import HOSTILE, example_page, finding, rows
from konkyo.report.html import html_of, strings
from konkyo.report.page import Page


@pytest.fixture(scope="module")
def source() -> str:
    return html_of(example_page(hostile=True))


def test_the_page_parses_and_has_no_id_twice(source: str) -> None:
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(source)
    ids = Counter(node.attrib["id"] for node in tree.iter() if isinstance(node.tag, str) and "id" in node.attrib)
    assert [name for name, count in ids.items() if count > 1] == []
    assert len(ids) > 20


def test_every_label_of_the_page_points_at_something(source: str) -> None:
    tree = html5lib.parse(source, namespaceHTMLElements=False)
    nodes = [node for node in tree.iter() if isinstance(node.tag, str)]
    ids = {node.attrib["id"] for node in nodes if "id" in node.attrib}
    wanted = {node.attrib["aria-labelledby"] for node in nodes if "aria-labelledby" in node.attrib}
    wanted |= {node.attrib["href"][1:] for node in nodes if node.tag == "a"}
    assert wanted - ids - {"detail-title", "help-title"} == set()


def test_no_address_but_in_the_provenance(source: str) -> None:
    assert re.findall(r"https?://[^\s\"<]*", source) == ["https://example.org/weights"]
    assert "default-src 'none'" in source


def test_a_hostile_label_ends_no_script(source: str) -> None:
    assert HOSTILE not in source
    tree = html5lib.parse(source, namespaceHTMLElements=False)
    assert [node for node in tree.iter("img") if node.attrib.get("src") == "x"] == []
    data = next(node for node in tree.iter("script") if node.attrib.get("id") == "k-data")
    assert json.loads(data.text or "")["rows"][0]["n"] == HOSTILE


def test_both_languages_have_the_same_keys_and_values() -> None:
    english, japanese = strings()["en"], strings()["ja"]
    assert english.keys() == japanese.keys()
    assert not [key for key in english if not english[key] or not japanese[key]]

    def fields(text: str) -> set[str | None]:
        return {name for _, name, _, _ in Formatter().parse(text) if name}

    assert [key for key in english if fields(english[key]) != fields(japanese[key])] == []


def test_every_key_that_is_used_has_words(source: str) -> None:
    assert set(re.findall(r'data-i18n="([^"]+)"', source)) - strings()["en"].keys() == set()
    assert set(re.findall(r'\bt\("([\w.]+)"[,)]', source)) - strings()["en"].keys() == set()


def test_the_state_of_a_map_does_not_read_as_a_diagnosis_of_the_patient() -> None:
    japanese = strings()["ja"]
    assert not [key for key, words in japanese.items() if "診断" in words]
    assert japanese["diag.ok"] != "正常"  # a decision "normal" of a chest X-ray is called so, too


def test_how_to_read_this_is_short() -> None:
    text = " ".join(value for key, value in strings()["en"].items() if key.startswith("reading."))
    assert 120 <= len(text.split()) <= 210


def test_findings_are_sorted_and_ok_is_folded(source: str) -> None:
    tree = html5lib.parse(source, namespaceHTMLElements=False)
    severities = [n.attrib["class"].split()[1] for n in tree.iter("article") if "finding" in n.attrib["class"]]
    assert severities == ["high", "medium", "unknown", "ok"]
    folded = [n for d in tree.iter("details") if d.attrib["class"] == "fold" for n in d.iter("article")]
    assert [n.attrib["class"].split()[1] for n in folded] == ["ok"]


def test_a_clean_verdict_counts_no_test_that_was_not_answered_and_tells_wrong_decisions() -> None:
    page = example_page()
    findings = [replace(page.findings[0], severity=severity) for severity in ("ok", "low", "unknown")]
    source = html_of(replace(page, verdict={}, findings=tuple(findings)), lang="ja")
    assert "2 件の検査で、重大または中程度の所見はありません。 1 件は判定できませんでした。 24 件の判定のうち" in source


def test_findings_of_one_severity_stay_in_their_order() -> None:
    findings = [finding("low", "wrong"), replace(finding("low", "suspicious"), value=12.0), finding("high", "cue")]
    source = html_of(Page(title="order", findings=tuple(findings)))
    assert re.findall(r'data-question="(\w+)"', source) == ["cue", "wrong", "suspicious"]


def test_500_images_weigh_at_most_8_mb() -> None:
    page = Page(title="500", rows=rows(500, side=224, cells=56))  # pictures of 6.5 kB, as photographs have
    assert len(html_of(page).encode()) < 8e6


def test_a_page_of_nothing_but_a_title_is_a_page() -> None:
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(html_of(Page(title="empty")))
    assert next(tree.iter("h1")).text == "empty"
