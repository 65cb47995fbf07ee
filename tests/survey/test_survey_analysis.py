"""The analysis as a whole: what it says of simulated raters, of tables at the edge, and what it writes."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from helpers.simulated_raters import answer, answers_of, form_of, table_of
from helpers.strict_json import strict as loads
from konkyo.errors import KonkyoError
from konkyo.survey.analysis import Analysis, analyse, read
from konkyo.survey.counts import Counts
from konkyo.survey.form import write_answers
from konkyo.survey.quality import RULES, Repeats, Sides, qualities
from konkyo.survey.sentences import percent


def two_methods(seed: int = 0, careless: tuple[int, ...] = ()) -> Analysis:
    form = form_of(["ours", "theirs"], 24, repeats=4, attention=2)
    answers = answers_of(form, 12, [0.9, 0], np.random.default_rng(seed), careless=careless)
    return analyse(answers, form, resamples=100)


def test_a_survey_of_two_methods() -> None:
    result = two_methods()
    main = result.main
    assert main is not None
    assert (result.raters, result.items, result.answers) == (12, 24, 12 * 30)
    assert main.low < main.rate < main.high
    assert main.votes == sum(row.for_first + row.for_second for row in result.by_item) < 12 * 24
    assert main.items.wins == sum(row.for_first > row.for_second for row in result.by_item)
    assert result.strengths is None
    assert result.repeats.n > 12 * 4 * 0.7
    mirrored = analyse_again("theirs")
    assert mirrored.main is not None
    assert mirrored.main.rate == pytest.approx(1 - main.rate)
    assert mirrored.main.low == pytest.approx(1 - main.high)
    assert mirrored.main.p == pytest.approx(main.p)


def analyse_again(method: str) -> Analysis:
    form = form_of(["ours", "theirs"], 24, repeats=4, attention=2)
    answers = answers_of(form, 12, [0.9, 0], np.random.default_rng(0))
    return analyse(answers, form, method=method, resamples=0)


def test_repeats_and_attention_items_are_no_votes() -> None:
    """All answers to them are turned around; nothing of the preference changes."""
    form = form_of(["ours", "theirs"], 6, repeats=2, attention=2)
    answers = answers_of(form, 5, [0.5, 0], np.random.default_rng(1))
    other = {"left": "right", "right": "left"}
    turned = [
        a
        if form.item(a.item).kind == "plain"
        else answer(
            a.rater,
            a.item,
            a.method_left,
            a.method_right,
            other.get(a.answer, "tie"),
            form_hash=a.form_hash,
            position=a.position,
        )  # type: ignore[arg-type]
        for a in answers
    ]
    one, two = (analyse(listed, form, rule="none", resamples=0) for listed in (answers, turned))
    assert one.preferences == two.preferences or repr(one.preferences) == repr(two.preferences)
    assert one.quality != two.quality


def test_careless_raters_are_left_out_and_told() -> None:
    result = two_methods(careless=(3, 7))
    assert [q.rater for q in result.excluded] == ["RATER003", "RATER007"]
    assert {q.excluded for q in result.excluded} <= {"side", "attention"}
    everyone, kept = (result.preference("ours", "theirs", which) for which in ("all", "kept"))
    assert everyone is not None
    assert kept is not None
    assert everyone.votes - kept.votes == 48
    assert abs(everyone.rate - 0.5) < abs(kept.rate - 0.5)  # they choose at random, since sides are random
    assert any('"standard"' in line and "RATER003" in line for line in result.remarks())
    assert "2 of 12 raters" in result.paragraph()


def test_each_rule_by_hand() -> None:
    form = form_of(["ours", "theirs"], 12, attention=2)
    items = {item.id: item for item in form.items}

    def rater(name: str, words: list[str], passed: tuple[bool, bool] = (True, True), ms: int = 4000) -> list:
        sides = [("ours", "theirs"), ("theirs", "ours")]
        plain = [answer(name, f"i{n:02d}", *sides[n % 2], word, ms=ms) for n, word in enumerate(words)]  # type: ignore[arg-type]
        checks = [
            answer(name, f"a{n:02d}", "ours", "(blank)", "left" if good else "right", ms=ms)
            for n, good in enumerate(passed)
        ]
        return [*plain, *checks]

    mixed = ["left", "right", "left", "left", "tie", "right"] * 2
    answers = [
        *rater("careful", mixed),
        *rater("one failed", mixed, (True, False)),
        *rater("hasty", mixed, ms=400),
        *rater("left", ["left"] * 12),
        *rater("left, seldom", ["left"] * 9 + ["tie"] * 3),
    ]
    reasons = {name: {q.rater: q.excluded for q in qualities(answers, items, rule)} for name, rule in RULES.items()}
    nobody = dict.fromkeys(["careful", "hasty", "left", "left, seldom", "one failed"], "")
    assert reasons["none"] == nobody
    assert reasons["attention"] == nobody | {"one failed": "attention"}
    assert reasons["standard"] == nobody | {"one failed": "attention", "hasty": "time", "left": "side"}
    by_name = {q.rater: q for q in qualities(answers, items, RULES["none"])}
    assert (by_name["left"].left, by_name["left"].run, by_name["left"].seconds) == (1.0, 14, 4.0)
    assert (by_name["one failed"].failed, by_name["one failed"].attention) == (1, 2)
    assert by_name["careful"].ties == pytest.approx(2 / 12)
    assert by_name["hasty"].fast == 1


def test_repeats_and_sides_by_hand() -> None:
    form = form_of(["ours", "theirs"], 4, repeats=4)
    items = {item.id: item for item in form.items}
    first = [
        answer("R", f"i{n:02d}", "ours", "theirs", word) for n, word in enumerate(("left", "left", "tie", "right"))
    ]  # type: ignore[arg-type]
    again = [
        answer("R", f"r{n:02d}", "theirs", "ours", word)  # type: ignore[arg-type]
        for n, word in enumerate(("right", "left", "tie", "cannot_judge"))
    ]
    repeats = Repeats.of([*first, *again], items)
    assert (repeats.n, repeats.same, repeats.same_side) == (3, 2, 1)
    sides = Sides.of([*first, *again], items)
    assert (sides.left, sides.right, sides.p) == (2, 1, 1.0)


def test_raters_who_lean_to_a_side_are_told() -> None:
    rows = [
        answer(f"R{r}", f"i{i:02d}", "ours", "theirs", "left" if (r + i) % 5 else "right")
        for r in range(6)
        for i in range(10)
    ]
    result = analyse(rows, rule="none", resamples=0)
    assert result.sides.p < 0.001
    assert any("favour a side: 80 %" in line for line in result.remarks())


def test_four_methods_have_strengths_and_pairs() -> None:
    form = form_of(["a", "b", "c", "d"], 24)
    answers = answers_of(form, 20, [1.5, 0.5, 0, -1], np.random.default_rng(2))
    result = analyse(answers, form, resamples=50)
    assert result.strengths is not None
    assert result.strengths.methods[0].method == "a"
    assert len(result.strengths.pairs) == 6
    assert len(result.agreement) == 6
    assert "a " in result.paragraph()
    assert "a > d (p < 0.001)" in result.paragraph()
    assert result.main is None


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["cannot_judge"] * 3] * 2, "no votes"),
        ([["tie"] * 3] * 2, "all votes are ties"),
        ([["ours", "theirs", "ours", "tie"]], "One rater"),
        ([["ours"], ["theirs"], ["ours"]], "One item"),
        ([["ours"] * 4] * 3, "4 items are few"),
        ([["ours", "", "theirs"], ["", "tie", ""]], "No form"),
    ],
)
def test_tables_at_the_edge_are_told(rows: list[list[str]], words: str, tmp_path: Path) -> None:
    result = analyse(table_of(rows), rule="none", resamples=20)
    assert any(words in line for line in result.remarks()), result.remarks()
    for lang in ("en", "ja"):
        text = " ".join([result.paragraph(lang), *result.remarks(lang)])
        assert "nan" not in text.lower()
        assert "-–-" not in text
        assert "{" not in text
    loads((result.save(tmp_path) / "result.json").read_text(encoding="utf-8"))


def test_one_method_of_three_that_never_won() -> None:
    pairs = [("a", "b", "left"), ("b", "a", "left"), ("a", "c", "left"), ("c", "b", "right")]
    rows = [answer(f"R{r}", f"i{n}", *pair) for r in range(3) for n, pair in enumerate(pairs)]  # type: ignore[arg-type]
    result = analyse(rows, rule="none", resamples=20)
    assert any("a, b | c" in line for line in result.remarks())
    assert "inf" not in json.dumps(result.description())


def test_what_is_written(tmp_path: Path) -> None:
    result = two_methods(careless=(2,))
    result.save(tmp_path, lang="ja")
    names = {path.name for path in tmp_path.iterdir()}
    tables = {"items.csv", "preference.csv", "agreement.csv", "raters.csv"}
    assert names == tables | {"votes.png", "preference.png", "paragraph.md", "result.json"}
    with (tmp_path / "items.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 24
    assert sum(int(row["for_first"]) for row in rows) == sum(row.for_first for row in result.by_item)
    values = loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert values["methods"] == ["ours", "theirs"]
    assert values["excluded"] == ["RATER002"]
    assert len(values["preferences"]) == 4
    assert "評価者" in (tmp_path / "paragraph.md").read_text(encoding="utf-8")
    for name in ("votes.png", "preference.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200


def test_the_same_answers_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (two_methods(3).save(tmp_path / name) / "result.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_tables_of_several_places_are_joined(tmp_path: Path) -> None:
    form = form_of(["ours", "theirs"], 6)
    answers = answers_of(form, 4, [0, 0], np.random.default_rng(4))
    write_answers(answers[:12], tmp_path / "a.csv")
    write_answers(answers[6:], tmp_path / "b.csv")
    assert len(read([tmp_path / "a.csv", tmp_path / "b.csv"], form)) == 24
    changed = answer(answers[0].rater, answers[0].item, "ours", "theirs", "cannot_judge", form_hash=form.form_hash)
    write_answers([changed], tmp_path / "c.csv")
    with pytest.raises(KonkyoError, match="otherwise than before"):
        read([tmp_path / "a.csv", tmp_path / "c.csv"], form)


def test_answers_that_cannot_be_analysed() -> None:
    form = form_of(["ours", "theirs"], 2, attention=1)
    checks = [answer("R", "a00", "ours", "(blank)", "left", form_hash=form.form_hash)]
    with pytest.raises(KonkyoError, match="none of them is"):
        analyse(checks, form)
    one = answer("R", "i00", "ours", "theirs", "left")
    with pytest.raises(KonkyoError, match="more than once"):
        analyse([one, one])
    with pytest.raises(KonkyoError, match="unknown method 'other'"):
        analyse([one], method="other")
    with pytest.raises(KonkyoError, match=r"of another form \(0"):
        analyse([answer("R", "i00", "ours", "theirs", "left", form_hash="0" * 64)], form)
    with pytest.raises(KonkyoError, match="of 2 forms"):
        analyse([one, answer("R", "i01", "ours", "theirs", "left", form_hash="1" * 64)])
    with pytest.raises(KonkyoError, match="unknown rule of exclusion 'strict'"):
        analyse([one], rule="strict")


def test_shares_near_the_ends_keep_their_digits() -> None:
    shares = (0.45, 0.7333, 0.9997, 0.99996, 0.00032, 0.0, 1.0)
    assert [percent(share) for share in shares] == ["45", "73.3", "99.97", "99.996", "0.032", "0", "100"]


def test_counts_that_are_sure_and_raters_who_are_few() -> None:
    text = " ".join(Counts.of(15, 15, raters=(5,)).lines())
    assert "p < 0.001 two-sided: significant" in text
    assert "One item with 5 raters cannot reach p < 0.05" in text
    assert "全員が一致しても" in " ".join(Counts.of(15, 15, raters=(5,)).lines("ja"))


def test_a_dollar_in_a_name_is_no_formula() -> None:
    names = ("a$\\frac$b", "theirs")
    analysis = analyse(table_of([["left", "right"], ["left", "tie"]], names), resamples=0)
    assert set(analysis.figures()) == {"votes.png", "preference.png"}


# --- the command line -------------------------------------------------------------------------------------------------


def invoke(*words: str) -> str:
    import typer

    from konkyo.apps.cli.survey_analysis import analyse, power

    app = typer.Typer()
    app.command()(analyse)
    app.command()(power)
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_command_on_the_papers_count() -> None:
    text = invoke("analyse", "--counts", "11/15", "--lang", "en")
    for words in ("p = 0.118 two-sided", "45%–92%", "needs 12 won items", "30%", "65%", "94%", "needs 21 equal votes"):
        assert words in text
    assert "needs 20 equal votes" in invoke("analyse", "--counts", "11/15", "--raters", "30,27", "--lang", "en")
    values = loads(invoke("analyse", "--counts", "11/15", "--json"))
    assert values["test"]["p"] == pytest.approx(0.118, abs=5e-4)
    assert values["needed"] == 12


def test_the_command_on_answers(tmp_path: Path) -> None:
    form = form_of(["ours", "theirs"], 24, attention=1)
    write_answers(answers_of(form, 6, [1, 0], np.random.default_rng(5)), tmp_path / "answers.csv")
    words = [
        "analyse",
        str(tmp_path / "answers.csv"),
        "--out",
        str(tmp_path / "out"),
        "--resamples",
        "50",
        "--lang",
        "en",
    ]
    text = invoke(*words)
    assert "No form was given" in text
    assert (tmp_path / "out" / "result.json").is_file()
    form.save(tmp_path)
    values = loads(invoke(*words, "--form", str(tmp_path), "--method", "theirs", "--json"))
    assert values["methods"] == ["theirs", "ours"]
    assert values["items"] == 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["analyse"], "or --counts WON/ITEMS"),
        (["analyse", "a.csv", "--counts", "1/2"], "got both"),
        (["analyse", "--counts", "1/2", "--form", "form", "--out", "x"], "--form, --out: for answers"),
        (["analyse", "a.csv", "--raters", "5"], "--raters: for --counts"),
        (["analyse", "--counts", "1/2", "--raters", "few"], "--raters is a number"),
        (["analyse", "--counts", "1/2", "--rate", "0.4"], "--rate is between one half and 1"),
        (["analyse", "--counts", "1/2", "--lang", "fr"], "unknown --lang 'fr'"),
    ],
)
def test_words_that_the_command_refuses(words: list[str], message: str) -> None:
    with pytest.raises(KonkyoError, match=message):
        invoke(*words)


def test_the_command_tells_power_before_the_start() -> None:
    text = invoke("power", "--raters", "8", "--items", "15", "--rate", ".9", "--simulations", "100")
    assert "p < 0.05 needs 12 of 15 items, or 8 of 8 votes on one item" in text
    assert "94%" in text
    assert "12 items" in text
    (row,) = loads(invoke("power", "--raters", "8", "--items", "15", "--rate", ".9", "--simulations", "100", "--json"))
    assert row["exact"] == pytest.approx(0.944, abs=1e-3)
    assert math.isfinite(row["votes"])
