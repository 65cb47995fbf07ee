"""The commands `konkyo survey analyse` and `konkyo survey power`: what answers show, and what a survey could show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from konkyo.apps.cli.options import Format, Json, Seed, figure_format
from konkyo.apps.cli.reports import Language, language_of
from konkyo.apps.cli.terminal import out, print_json, print_line, print_table, progress_bar
from konkyo.errors import KonkyoError

if TYPE_CHECKING:
    from konkyo.survey.analysis import Analysis

_FOLDER = Path("konkyo-survey-analysis")
RaterCounts = Annotated[str, typer.Option("--raters", help="How many raters there are; several apart by commas.")]
Rates = Annotated[
    str, typer.Option("--rate", help="How often a method is preferred, as in .7,.8,.9; between one half and 1.")
]


def analyse(
    answers: Annotated[list[Path] | None, typer.Argument(help="Tables of answers (csv), all of one form.")] = None,
    form: Annotated[
        Path | None, typer.Option("--form", help="The folder of the form, which knows repeats and attention items.")
    ] = None,
    counts: Annotated[
        str | None, typer.Option("--counts", help="WON/ITEMS in place of answers, as in 11/15: what a paper reports.")
    ] = None,
    raters: RaterCounts = "30",
    rate: Rates = ".7,.8,.9",
    method: Annotated[
        str | None, typer.Option("--method", help="The method whose rate is reported; the form's first one.")
    ] = None,
    rule: Annotated[
        str, typer.Option("--exclude", help="Who is left out: standard, attention or none; all raters are shown, too.")
    ] = "standard",
    resamples: Annotated[int, typer.Option("--resamples", min=0, help="For the bootstrap intervals; 0: none.")] = 1000,
    seed: Seed = 0,
    to: Annotated[Path, typer.Option("--out", help="Folder for tables, figures and the paragraph.")] = _FOLDER,
    format: Format = "png",
    lang: Language = "auto",
    as_json: Json = False,
) -> None:
    """Analyse answers of a survey: preferences with intervals, strengths, agreement, raters, and words for a paper."""
    from konkyo.survey.analysis import analyse, read
    from konkyo.survey.form import Form

    words = language_of(lang)
    if counts is not None:
        if answers:
            raise KonkyoError("--counts takes the place of answers; got both")
        others = {"--form": form, "--method": method, "--exclude": rule != "standard", "--resamples": resamples != 1000}
        others |= {"--seed": seed != 0, "--out": to != _FOLDER, "--format": format != "png"}
        _require_none(others, "answers, and --counts has none")
        _print_counts(counts, _numbers(raters), _rates(rate), words, as_json)
        return
    if not answers:
        raise KonkyoError("tables of answers were expected, as in answers.csv, or --counts WON/ITEMS")
    _require_none({"--raters": raters != "30", "--rate": rate != ".7,.8,.9"}, "--counts; answers know their raters")
    kind = figure_format(format)
    loaded = None if form is None else Form.load(form)
    result = analyse(read(answers, loaded), loaded, method=method, rule=rule, resamples=resamples, seed=seed)
    result.save(to, lang=words, format=kind)
    if as_json:
        print_json(result.description())
        return
    _print_analysis(result, words)
    print_line(f"tables, figures and paragraph.md in {to}")


def power(
    raters: RaterCounts = "30",
    items: Annotated[int, typer.Option("--items", min=1, help="How many items every rater answers.")] = 24,
    rate: Rates = ".7,.8,.9",
    rater_deviation: Annotated[
        float, typer.Option("--rater-sd", min=0, help="How far raters differ: standard deviation of the logit.")
    ] = 0.5,
    item_deviation: Annotated[
        float, typer.Option("--item-sd", min=0, help="How far items differ: standard deviation of the logit.")
    ] = 1.0,
    simulations: Annotated[int, typer.Option("--simulations", min=100, help="Surveys that are simulated.")] = 500,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Tell before a survey starts what it can show, and how many items that needs."""
    from konkyo.survey.power import Population, critical_count, power

    rows = []
    with progress_bar("simulating", None, shown=not as_json) as bar:
        wanted = [(count, share) for count in _numbers(raters) for share in _rates(rate)]
        for done, (count, share) in enumerate(wanted):
            bar(done, len(wanted))
            population = Population(share, rater_deviation, item_deviation)
            rows.append(power(count, items, share, population=population, simulations=simulations, seed=seed))
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    head = ["raters", "items", "rate", "if of items: power", "for 80 %", "if of votes: majorities", "votes", "for 80 %"]
    print_table(
        head,
        [
            [
                str(row.raters),
                str(row.items),
                f"{row.rate:g}",
                f"{row.exact:.0%}",
                "-" if row.needed is None else f"{row.needed} items",
                f"{row.majorities:.0%}",
                f"{row.votes:.0%}",
                "-" if row.needed_votes is None else f"{row.needed_votes} items",
            ]
            for row in rows
        ],
    )
    for count in _numbers(raters):
        needed = {n: critical_count(n) for n in (items, count)}
        print_line(
            f"p < 0.05 needs {needed[items] or 'more than all'} of {items} items, or "
            f"{needed[count] or 'more than all'} of {count} votes on one item"
        )
    print_line(
        f"Votes are simulated with deviations of {rater_deviation:g} (raters) and {item_deviation:g} (items) of the "
        "logit; those of a pilot are better."
    )


def _print_counts(text: str, raters: list[int], rates: list[float], lang: str, as_json: bool) -> None:
    from konkyo.survey.counts import Counts

    counts = Counts.parse(text, raters, rates)
    if as_json:
        print_json(counts.description())
        return
    for line in counts.lines(lang):
        print_line(line)


def _print_analysis(result: Analysis, lang: str) -> None:
    from konkyo.evaluation.result import bracketed, number

    head = [
        "",
        "against",
        "raters",
        "ties",
        "votes",
        "rate [95 %]",
        "p",
        "bootstrap",
        "worth",
        "items won",
        "p of items",
    ]
    print_table(
        head,
        [
            [
                *(p.first, p.second, p.raters, p.ties, str(p.votes), bracketed(p.rate, p.low, p.high), number(p.p)),
                f"[{number(p.bootstrap_low)}, {number(p.bootstrap_high)}]",
                "-" if p.effective != p.effective else f"{p.effective:.0f}",
                f"{p.items.wins} of {p.items.wins + p.items.losses}",
                number(p.items.p),
            ]
            for p in result.preferences
        ],
    )
    out.print()
    if result.strengths is not None and result.strengths.methods:
        print_table(
            ["method", "strength [95 %]"],
            [[s.method, bracketed(s.value, s.low, s.high)] for s in result.strengths.methods],
        )
        out.print()
    print_line(result.paragraph(lang))
    out.print()
    for line in result.remarks(lang):
        print_line(line)


def _require_none(options: Mapping[str, object], what: str) -> None:
    """Checks that none of these options was given. KonkyoError: some were, and would change nothing."""
    if given := [name for name, value in options.items() if value]:
        raise KonkyoError(f"{', '.join(given)}: for {what}")


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise KonkyoError(f"--raters is a number of 1 or more, several apart by commas, as in 30,27; got {text!r}")
    return numbers


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        rates = []
    if not rates or not all(0.5 < rate < 1 for rate in rates):
        raise KonkyoError(f"--rate is between one half and 1, several apart by commas, as in .7,.8; got {text!r}")
    return rates
