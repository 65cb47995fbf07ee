"""A page as one HTML file that needs nothing else: no network, no build, no Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal, TypeAlias

from jinja2 import Environment
from markupsafe import Markup

from konkyo.evaluation.diagnose.findings import SEVERITIES, Evidence, Finding, Text
from konkyo.report.assets import (
    BLOCK,
    Pictures,
    colour_tables,
    composite,
    data_uri,
    described_map,
    map_side,
    packed_map,
    picture_side,
    rounded,
)
from konkyo.report.classes import class_views, matrix_view
from konkyo.report.page import LANGUAGES, ImageRow, Measure, Page
from konkyo.report.svg import curve_view
from konkyo.report.truth import accuracy
from konkyo.tasks.responses import Response
from konkyo.utils.templates import environment_of, strings_of, text_of

Language: TypeAlias = Literal["auto", "en", "ja"]
STATIC = 50
"""So many images are shown without JavaScript."""
_STATIC_SIDE, _EVIDENCE_SIDE, _FIGURE_SIDE = 160, 320, 1200
_ICONS = {"high": "▲", "medium": "◆", "low": "●", "unknown": "?", "ok": "✓"}


@cache
def strings() -> dict[str, dict[str, str]]:
    """Returns the words of the page by language and key."""
    return strings_of("konkyo.report", LANGUAGES)


def html_of(page: Page, *, lang: Language = "auto") -> str:
    """Returns the page as HTML. `lang`: the language it opens in; "auto": Japanese where the browser's language is."""
    first = "ja" if lang == "ja" else "en"
    known = _with_flags(page)
    data, pictures, maps = _data(known)
    static = [(row, _static_picture(row)) for row in known.rows[:STATIC]]
    context = {
        "page": known,
        "lang": first,
        "auto": lang == "auto",
        "verdict": known.verdict or _verdict(known),
        "counts": _counts(known),
        "findings": [_finding_view(finding) for finding in _by_severity(known.findings)],
        "icons": _ICONS,
        "shortlists": known.shortlists,
        "static": static,
        "classes": class_views(known),
        "matrix": matrix_view(known.confusion),
        "tables": [_table_view(table.head, table.rows, table.title, table.note) for table in known.tables],
        "curves": [curve_view(curves) for curves in known.curves],
        "matrices": [_matrix_table(m.names, m.values.tolist(), m.title, m.note) for m in known.matrices],
        "figures": [_evidence_view(figure, _FIGURE_SIDE) for figure in known.figures],
        "methods": data["methods"],
        "style": Markup(text_of("konkyo.report", "templates/page.css")),
        "script": Markup(text_of("konkyo.report", "templates/page.js")),
        "data": data,
        "strings": strings(),
        "pictures": pictures,
        "maps": maps,
    }
    return _environment(first).get_template("page.html").render(context)


# --- what the template needs ------------------------------------------------------------------------------------------


def _environment(lang: str) -> Environment:
    environment = environment_of("konkyo.report")
    environment.filters.update(both=_both, number=_number)
    environment.globals.update(s=strings()[lang], words_of=words_of)
    return environment


def _both(text: Text | str) -> Markup:
    """Returns words in both languages, of which the page shows one; escaped."""
    if isinstance(text, str) or len({*text.values()}) < 2:
        return Markup("{}").format(text if isinstance(text, str) else next(iter(text.values()), ""))
    span = Markup('<span class="t" lang="{}">{}</span>')
    return Markup("").join(span.format(lang, text.get(lang) or text["en"]) for lang in LANGUAGES)


def words_of(key: str, **values: object) -> Text:
    """Returns one of the page's own sentences as a `Text`, with its values filled in."""
    return {lang: words[key].format(**values) for lang, words in strings().items()}


def _number(value: float) -> str:
    """Returns three significant digits, whole numbers as they are, "–" of what is not known.

    >>> _number(0.12345), _number(12.0), _number(0.0001), _number(float("nan"))
    ('0.123', '12', '0.0001', '–')
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def _with_flags(page: Page) -> Page:
    """Returns the page whose wrong rows all bear the flag "wrong"."""
    rows = tuple(
        replace(row, flags=("wrong", *row.flags)) if row.correct is False and "wrong" not in row.flags else row
        for row in page.rows
    )
    return replace(page, rows=rows)


def _by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings, the most severe first; values of different questions do not compare, so others stay."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _images(page: Page) -> dict[str, ImageRow]:
    """Returns one row per image; images of one name are told apart by their pictures."""
    return {f"{row.name}\0{id(row.picture)}": row for row in page.rows}


def _verdict(page: Page) -> Text:
    high, medium = (sum(f.severity == severity for f in page.findings) for severity in ("high", "medium"))
    if high + medium:
        return words_of("verdict.findings", high=high, medium=medium)
    images = _images(page)
    correct, n, _, _ = accuracy(list(images.values()))
    wrong = words_of("verdict.wrong", wrong=n - correct, n=n)
    if page.findings:
        unknown = sum(f.severity == "unknown" for f in page.findings)
        said = [words_of("verdict.clean", count=len(page.findings) - unknown)]
        said += [words_of("verdict.unknown", count=unknown)] * (unknown > 0) + [wrong] * (correct < n)
        return {lang: " ".join(part[lang] for part in said) for lang in said[0]}
    if n:
        return wrong
    maps = [m for row in page.rows for m in row.maps]
    doubtful = sum(m.diagnosis != "ok" for m in maps)
    key = "verdict.maps" if doubtful else "verdict.maps.clean"
    return words_of(key, maps=len(maps), images=len(images), doubtful=doubtful) if maps else {}


def _counts(page: Page) -> tuple[tuple[Text, str], ...]:
    if page.counts:
        return page.counts
    counts: list[tuple[Text, str]] = []
    images = _images(page)
    if images:
        counts.append((words_of("count.images"), str(len(images))))
    correct, n, low, high = accuracy(list(images.values()))
    if n:
        counts += accuracy_counts(correct, n, low, high)
    if (methods := len(_methods(page))) > 1:
        counts.append((words_of("count.methods"), str(methods)))
    if doubtful := sum(m.diagnosis != "ok" for row in page.rows for m in row.maps):
        counts.append((words_of("count.doubtful"), str(doubtful)))
    if page.findings:
        named = sum(finding.severity in ("high", "medium", "low") for finding in page.findings)
        counts.append((words_of("count.findings"), str(named)))
    return tuple(counts)


def accuracy_counts(correct: int, n: int, low: float, high: float) -> list[tuple[Text, str]]:
    """Returns the accuracy with its interval ("–" of no image), and how many are wrong, as a page counts them."""
    share = f"{correct / n:.1%} [{low:.1%}, {high:.1%}]" if n else "–"
    return [(words_of("count.accuracy"), share), (words_of("count.wrong"), str(n - correct))]


def _methods(page: Page) -> list[str]:
    return list(dict.fromkeys(m.method for row in page.rows for m in row.maps))


def _finding_view(finding: Finding) -> dict[str, Any]:
    return {
        "finding": finding,
        "icon": _ICONS[finding.severity],
        "evidence": [_evidence_view(entry, _EVIDENCE_SIDE) for entry in finding.evidence],
        "interval": f"{_number(finding.low)} – {_number(finding.high)}" if math.isfinite(finding.low) else "",
        "p": "" if math.isnan(finding.p) else _number(finding.p),
        "p_adjusted": "" if math.isnan(finding.p_adjusted) else _number(finding.p_adjusted),
    }


def _evidence_view(evidence: Evidence, side: int) -> dict[str, Any]:
    width, height = evidence.picture.size
    side = side if width < 2 * height else 2 * side  # strips of several pictures
    shrink = min(1.0, side / max(width, height))
    size = round(width * shrink), round(height * shrink)
    return {"uri": data_uri(evidence.picture, side), "caption": evidence.caption, "width": size[0], "height": size[1]}


def _static_picture(row: ImageRow) -> str | None:
    if row.picture is None:
        return None
    return data_uri(composite(row.picture, row.maps[0], _STATIC_SIDE) if row.maps else row.picture, _STATIC_SIDE)


def _table_view(head: Sequence[str], rows: Sequence[Sequence[Any]], title: Text, note: Text) -> dict[str, Any]:
    """Returns a table of which every `Measure` knows where its bar lies on the scale of its column."""
    spans: dict[int, tuple[float, float]] = {}
    for column in range(len(head)):
        cells = [row[column] for row in rows if column < len(row) and isinstance(row[column], Measure)]
        ends = [v for cell in cells for v in (cell.low, cell.value, cell.high) if math.isfinite(v)]
        if ends:
            spans[column] = (min(0.0, *ends), max(ends))
    views = [[_cell_view(cell, spans.get(k)) for k, cell in enumerate(row)] for row in rows]
    measures = any(isinstance(cell, Measure) for row in rows for cell in row)
    return {"head": head, "rows": views, "title": title, "note": note, "measures": measures}


def _cell_view(cell: Any, span: tuple[float, float] | None) -> dict[str, Any]:
    if isinstance(cell, Measure):
        text = _number(cell.value)
        if math.isfinite(cell.low):
            text += f" [{_number(cell.low)}, {_number(cell.high)}]"
        view: dict[str, Any] = {"text": text, "numeric": True, "best": cell.best, "worse": cell.worse, "bar": None}
        if span and span[1] > span[0] and math.isfinite(cell.value):
            at = [(v - span[0]) / (span[1] - span[0]) * 100 for v in (cell.value, cell.low, cell.high)]
            view["bar"] = {"value": at[0], "low": at[1], "high": at[2]} if math.isfinite(at[1]) else {"value": at[0]}
        return view
    numeric = isinstance(cell, (int, float)) and not isinstance(cell, bool)
    text = _number(cell) if numeric else str(cell)
    return {"text": text, "numeric": numeric, "best": False, "worse": False, "bar": None}


def _matrix_table(names: Sequence[str], values: Sequence[Sequence[float]], title: Text, note: Text) -> dict[str, Any]:
    finite = [abs(v) for line in values for v in line if math.isfinite(v)]
    most = max(finite, default=1.0) or 1.0
    lines = [
        [{"text": _number(v), "share": round(abs(v) / most * 100) if math.isfinite(v) else 0} for v in line]
        for line in values
    ]
    return {"names": names, "lines": lines, "title": title, "note": note}


# --- what the script needs --------------------------------------------------------------------------------------------


def _data(page: Page) -> tuple[dict[str, Any], list[list[str]], list[list[Any]]]:
    """Returns the rows without their pictures, the pictures in blocks, and the maps in blocks of rows."""
    shown = [row for row in page.rows if row.picture is not None]
    pictures = Pictures(picture_side(len({id(row.picture) for row in shown})))
    side = map_side(page.rows)
    rows, maps, answers = [], [], _answers(page)
    for row in page.rows:
        rows.append(_row(row, pictures))
        if row.passage is not None:
            rows[-1]["w"] = [list(answers).index(_answer_key(row)), list(row.passage.tokens)]
        maps.append(
            {
                "m": [packed_map(m, side) for m in row.maps],
                "x": [packed_map(m, side) for m in row.contrasts],
                "nb": [None if n.map is None else packed_map(n.map, side) for n in row.neighbours],
            }
        )
    finest = max((max(m.values.shape) for row in page.rows for m in row.maps), default=0)
    data = {
        "rows": rows,
        "methods": _methods(page),
        "columns": list(dict.fromkeys(name for row in page.rows for name in row.values)),
        "ordered": page.ordered,
        "block": BLOCK,
        "tables": colour_tables(),
        "answers": [{"q": response.question, "p": response.pieces} for response in answers.values()],
        "shortlists": [{"t": dict(s.title), "rows": list(s.rows)} for s in page.shortlists],
        "reduced": side if finest > side else 0,
        "without": len(page.rows) - len(shown),
    }
    return data, pictures.blocks(), [maps[at : at + BLOCK] for at in range(0, len(maps), BLOCK)]


def _answer_key(row: ImageRow) -> tuple[object, ...]:
    """Returns what rows of one answer to one image have in common."""
    return row.name, id(row.picture), None if row.passage is None else row.passage.response


def _answers(page: Page) -> dict[tuple[object, ...], Response]:
    """Returns the answers in words that rows are about, each once for its image."""
    return {_answer_key(row): row.passage.response for row in page.rows if row.passage is not None}


def _row(row: ImageRow, pictures: Pictures) -> dict[str, Any]:
    """Returns what the table knows of a row at once, under short names; what is not known is left out."""
    values: dict[str, Any] = {
        "n": row.name,
        "p": None if row.picture is None else pictures.add(row.picture),
        "b": row.box,
        "d": row.decision,
        "dp": rounded(row.probability),
        "t": row.true_label,
        "tp": rounded(row.true_probability),
        "a": row.asked,
        "ap": rounded(row.asked_probability),
        "ar": row.asked_rank,
        "f": list(row.flags),
        "s": rounded(row.suspicion),
        "why": dict(row.why),
        "top": [[name, rounded(p)] for name, p in row.top],
        "v": {name: rounded(v) for name, v in row.values.items()},
        "m": [{"n": m.method} | described_map(m) for m in row.maps],
        "x": [{"n": m.method} | described_map(m) for m in row.contrasts],
        "nb": [
            {
                "p": None if n.picture is None else pictures.add(n.picture, 160),
                "n": n.name,
                "l": n.label,
                "s": rounded(n.similarity),
            }
            for n in row.neighbours
        ],
        "e": [{"p": pictures.add(e.picture, _EVIDENCE_SIDE), "c": dict(e.caption)} for e in row.evidence],
    }
    return {key: value for key, value in values.items() if value not in (None, "", [], {}, ())}
