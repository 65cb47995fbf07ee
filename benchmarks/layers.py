"""Judges the automatic layer of every network in the zoo of the tests, and writes the table in the docs.

python benchmarks/layers.py            # all of it, about two minutes
python benchmarks/layers.py hand-made  # of one library, or of one network, to the terminal only
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import cuts, zoo  # noqa: E402 - of the tests

PAGE = ROOT / "docs" / "layers-table.md"
LAYERS = 2
"""Of more branches the table says how many there are."""


def row(animal: zoo.Animal) -> tuple[str, cuts.Judgement]:
    """Returns a row of the table, and what it says."""
    found = cuts.judged(animal)
    names = found.layer.split("+") if found.layer else []
    layer = (
        " + ".join(f"`{name}`" for name in names) if len(names) <= LAYERS else f"`{names[0]}` and {len(names) - 1} more"
    )
    share = "" if math.isnan(found.around) else f"{found.around:.1%}"
    size = " x ".join(map(str, animal.shape[1:]))
    grid = " x ".join(map(str, found.grid))
    return f"| {animal.name} | {size} | {layer} | {grid} | {share} | {shown(found)} |", found


def shown(found: cuts.Judgement) -> str:
    """Returns the verdict without the name of the network's class, which an error starts with."""
    verdict = found.verdict
    if verdict.startswith("told: KonkyoError"):
        return "told: no layer is a grid of the image" if "no layer puts out" in verdict else "told: an error"
    return verdict.replace("FAULT:", "**wrong**:")


def page(rows: Iterable[tuple[str, str, cuts.Judgement]]) -> str:
    """Returns the page: a table for every library."""
    rows = list(rows)
    verdicts = [found.verdict for _, _, found in rows]
    placed = sum(verdict == "cut, placed" for verdict in verdicts)
    told = sum(verdict.startswith("told") for verdict in verdicts)
    wrong = sum(verdict.startswith("FAULT") for verdict in verdicts)
    lines = [
        *("# Automatic layers, judged", ""),
        f"This table has the layer that konkyo chooses for {len(rows)} networks with random weights.",
        "For each, a judge that knows nothing of the choice asks two questions,",
        "on a picture that the library has not seen before:",
        "",
        "- **around**: all that the layers put out is held constant. Which share of the absolute gradient at the image",
        f"  is left? Of a cut it is at most {cuts.AROUND:.0%}.",
        f"- **place**: {cuts.CELLS} cells are drawn. Is the gradient of each at the image strongest at the cell's own",
        f"  place, or next to it? Of at least {cuts.PLACED:.0%} it must be.",
        "  Without a gradient, the image is changed at the cell's place.",
        "",
        f"**{placed}** layers are a cut and placed. Of **{told}** networks the library says itself what is wrong:",
        "by an error, or by the [diagnosis](layers.md#what-is-wrong-with-this-map) of the map.",
        f"**{wrong}** are wrong in silence. Of {len(rows) - placed - told - wrong} cuts the cells cannot be judged",
        "with random weights. The tests ask the same of every network.",
        "",
        "Written by `python benchmarks/layers.py`.",
    ]
    for library in dict.fromkeys(name for name, _, _ in rows):
        lines += [
            "",
            f"## {library}",
            "",
            "| network | image | layer | grid | around | verdict |",
            "|---|---|---|---|---|---|",
        ]
        lines += [text for name, text, _ in rows if name == library]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judges what was asked for, and writes the page if that is everything."""
    warnings.simplefilter("ignore")
    asked, rows = set(sys.argv[1:]), []
    for animal in zoo.animals():
        if not asked or asked & {animal.library, animal.name}:
            text, found = row(animal)
            rows.append((animal.library, text, found))
            print(text, flush=True)
    if not asked:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
