"""The commands of a survey: a form is built, served or made one file, and its answers are gathered."""

from __future__ import annotations

import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from konkyo.apps.cli.options import Json, Port, Seed, names_in
from konkyo.apps.cli.records import PicturesNow
from konkyo.apps.cli.survey_analysis import analyse, power
from konkyo.apps.cli.terminal import print_json, print_line, print_note, print_warning, progress_bar
from konkyo.errors import KonkyoError, KonkyoWarning
from konkyo.utils.files import parse_json, read_text

if TYPE_CHECKING:
    from konkyo.survey.form import Form

_HELP = "Ask people which of two maps is better: build a form, serve it or send it as one file, gather the answers."
survey = typer.Typer(help=_HELP, no_args_is_help=True)
survey.command()(analyse)
survey.command()(power)

FormFolder = Annotated[Path, typer.Argument(help="The folder that `konkyo survey build` made.")]
AnswersTable = Annotated[Path, typer.Option("--out", help="The table of the answers (csv).")]


@survey.command()
def build(
    sources: Annotated[
        list[str],
        typer.Option("--from", help="A folder of `konkyo run` or `konkyo explain`, or NAME=FOLDER; repeatable."),
    ],
    method: Annotated[
        str, typer.Option("--method", help="Of the folders, these methods alone, as in grad_cam,layer_cam.")
    ] = "",
    to: Annotated[Path, typer.Option("--out", help="A new folder for the form.")] = Path("konkyo-survey"),
    items: Annotated[int, typer.Option("--items", min=1, help="So many images are asked about.")] = 30,
    rule: Annotated[
        str, typer.Option("--sample", help="random; or stratified by true_label, decision or correct.")
    ] = "random",
    repeats: Annotated[int, typer.Option("--repeats", min=0, help="So many come again, their sides swapped.")] = 3,
    attention: Annotated[int, typer.Option("--attention", min=0, help="So many items show who does not read.")] = 2,
    attention_kind: Annotated[
        str, typer.Option("--attention-kind", help="instruction; or a map against its shuffled self, or blank.")
    ] = "instruction",
    scale: Annotated[
        str,
        typer.Option("--scale", help="Colours run over every map's own values (picture), or all of an item's (joint)."),
    ] = "picture",
    signed: Annotated[bool, typer.Option("--signed", help="Evidence against the target is drawn, too.")] = False,
    side: Annotated[int, typer.Option("--side", help="The longer side of the pictures in pixels.")] = 448,
    texts: Annotated[
        Path | None,
        typer.Option("--wording", help='JSON: {"en": {"title": ..., "question": ..., "consent": ...}, "ja": ...}.'),
    ] = None,
    offline: Annotated[
        Path | None, typer.Option("--offline", help="Also write FILE.html, which asks without a server.")
    ] = None,
    seed: Seed = 0,
    data: PicturesNow = None,
    as_json: Json = False,
) -> None:
    """Build the form of a blinded survey: images drawn by a rule and a seed, all maps drawn alike."""
    from konkyo.survey import Drawing, Plan, build, write_offline

    if offline is not None and offline.suffix.lower() not in (".html", ".htm"):
        raise KonkyoError(f"--offline is a file FILE.html; got {offline.name!r}")
    plan = Plan(
        items=items,
        rule=rule,
        repeats=min(repeats, items),
        attention=attention,
        attention_kind=attention_kind,  # type: ignore[arg-type] # checked by the plan
        seed=seed,
        methods=tuple(names_in(method)),
        drawing=Drawing(scale, signed, side),  # type: ignore[arg-type] # checked by the drawing
        texts={} if texts is None else _wording(texts),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", KonkyoWarning)
        with progress_bar("building the form", None, shown=not as_json) as progress:
            form = build(_named(sources), to, plan, data, progress=progress)
    for warning in caught:
        if issubclass(warning.category, KonkyoWarning):
            print_warning("warning:", str(warning.message))
    if offline is not None:
        write_offline(form, to, offline)
    if as_json:
        print_json({"folder": str(to), **_facts(form)})
        return
    for line in _sentences(form, items, to, offline):
        print_line(line)


@survey.command()
def serve(
    folder: FormFolder,
    database: Annotated[
        Path | None, typer.Option("--database", help="Where the answers are kept; answers.sqlite in the folder.")
    ] = None,
    invite: Annotated[
        int, typer.Option("--invite", min=0, help="Make links for so many raters, and let in nobody else.")
    ] = 0,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen at; others than 127.0.0.1 open it.")
    ] = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Serve the form on the web; every answer is on the disk before it is acknowledged. Ctrl-C ends it."""
    from konkyo.survey import serve

    def started(address: str, codes: list[str]) -> None:
        if not address.startswith(("http://127.0.0.1:", "http://localhost:")):
            print_warning(
                "note:",
                f"{address} can be reached from other machines, without encryption; put a web server with HTTPS "
                "before it where the network is not your own",
            )
        print_line(f"survey at {address}")
        for code in codes:
            print_line(f"{address}#{code}")

    serve(folder, database=database, host=host, port=port, raters=invite, started=started)


@survey.command()
def export(
    database: Annotated[Path, typer.Argument(help="The database that `konkyo survey serve` keeps.")],
    to: AnswersTable = Path("answers.csv"),
) -> None:
    """Write the answers of a served survey as a table; also while it is being served."""
    from konkyo.survey.form import write_answers
    from konkyo.survey.store import Store

    with closing(Store(database)) as store:
        answers = store.answers()
    write_answers(answers, to)
    print_line(f"{len(answers)} answers of {len({a.rater for a in answers})} raters in {to}")


@survey.command(name="import")
def import_answers(
    folder: FormFolder,
    files: Annotated[
        list[Path], typer.Argument(help="What raters sent back (.json), tables (.csv), databases (.sqlite).")
    ],
    to: AnswersTable = Path("answers.csv"),
) -> None:
    """Check answers against their form, and join them in one table. Files that are wrong are named and left out."""
    from konkyo.survey.collection import Collection, answers_in
    from konkyo.survey.form import Form, write_answers

    form, refused = Form.load(folder), 0
    joined = Collection(form)
    for file in files:
        try:
            joined.add(answers_in(file, form), file.name)
        except KonkyoError as error:
            refused += 1
            print_warning("left out:", str(error))
    for note in joined.notes:
        print_note(note)
    if not joined.answers:
        raise KonkyoError("no file has answers to this form")
    write_answers(joined.answers.values(), to)
    print_line(f"{len(joined.answers)} answers of {joined.raters} raters in {to}")
    if refused:
        raise typer.Exit(3)


def _named(sources: list[str]) -> dict[str, str]:
    """Returns folders by name: that before "=", or the folder's own. KonkyoError: two of one name."""
    named: dict[str, str] = {}
    for text in sources:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).is_dir():
            name, folder = Path(text).resolve().name, text
        if not name or name in named:
            raise KonkyoError(f"every folder has a name of its own, as in --from NAME=FOLDER; got {text!r}")
        named[name] = folder
    return named


def _wording(file: Path) -> Any:
    try:
        return parse_json(read_text(file))
    except ValueError as error:
        raise KonkyoError(f"{file} cannot be read as JSON: {error}") from error


def _facts(form: Form) -> dict[str, Any]:
    kinds = [item.kind for item in form.items]
    counts = {kind: kinds.count(kind) for kind in ("plain", "repeat", "attention")}
    return {
        "form_hash": form.form_hash,
        "methods": list(form.methods),
        "items": counts,
        "seed": form.seed,
        "sampling": dict(form.sampling),
    }


def _sentences(form: Form, asked_for: int, to: Path, offline: Path | None) -> list[str]:
    sampling, counts = form.sampling, _facts(form)["items"]
    fewer = f", fewer than the {asked_for} asked for" if sampling["drawn"] < asked_for else ""
    lines = [
        f"form of {counts['plain']} items, {counts['repeat']} repeats and {counts['attention']} attention items, "
        f"comparing {', '.join(form.methods)}, in {to}",
        f"drawn: {sampling['rule']}, seed {form.seed}; {sampling['drawn']} of {sampling['possible']} images{fewer}",
    ]
    lines += [f"left out: {count} {reason}" for reason, count in sampling["left_out"].items()]
    doubtful = {name: count for name, count in sampling["doubtful_maps"].items() if count}
    lines += [
        f"{count} maps of {name} are doubtful by their diagnosis; they are asked about like all"
        for name, count in doubtful.items()
    ]
    if offline is not None:
        lines.append(f"offline page: {offline} ({offline.stat().st_size / 1e6:.1f} MB)")
    return lines
