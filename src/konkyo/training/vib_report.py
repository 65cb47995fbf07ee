"""The report of a study of the variational information bottleneck: the paper's Table 1, and maps side by side."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.evaluation import Table, markdown
from konkyo.files import write_text
from konkyo.report.figures import Cell, Row, contact_sheet, save_image
from konkyo.training.study import STUDY

_COLUMNS = 6
"""Networks in a sheet of maps."""


@dataclass(frozen=True, eq=False)
class VIBReport:
    """What came out of a study."""

    folder: Path
    settings: Mapping[str, Any]
    tests: Mapping[tuple[str, int], Mapping[str, Any]]
    """(network, seed) -> what its test.json holds."""

    def table(self) -> Table:
        """A row per network: the paper's Table 1 (accuracy, and its share of the plain network's of the same seed).

        Then what the code holds, and how far the maps of CAM lie on masks; means over seeds, with the standard
        deviation where there are several.
        """
        kinds = list(dict.fromkeys(name for name, _ in self.tests))
        head = ["model", "beta", "effective beta", "accuracy % (relative %)", "kappa", "KL (nats)", "bits", "std"]
        maps = list(dict.fromkeys(m for test in self.tests.values() for m in test.get("maps") or ()))
        rows = []
        for name in kinds:
            found = [test for (other, _), test in self.tests.items() if other == name]
            relative = [
                100 * test["accuracy"] / plain["accuracy"]
                for (other, seed), test in self.tests.items()
                if other == name and (plain := self.tests.get(("plain", seed))) and plain["accuracy"]
            ]
            kind, _, beta = name.partition("_") if name.startswith("vib_") else (name, "", "")
            channels = found[0].get("channels") or math.nan
            shrunk = self.settings["reduction"] == "mean"
            effective = f"{float(beta) / (channels if shrunk else 1):.3g}" if beta else ""
            share = f" ({_mean(relative, 2)})" if relative else ""
            rows.append(
                [kind, beta, effective, _mean([100 * t["accuracy"] for t in found], 2) + share]
                + [_mean([t["kappa"] for t in found], 3)]
                + [_mean([t[c] for t in found if c in t], d) for c, d in (("kl", 1), ("bits", 1), ("std", 3))]
                + [_mean([t["maps"][m]["value"] for t in found if m in (t.get("maps") or {})], 3) for m in maps]
            )
        return [*head, *maps], rows

    def remarks(self) -> list[str]:
        """What a reader of the table should know."""
        sizes, seeds = self.settings["sizes"], len({seed for _, seed in self.tests})
        found = [
            f"{self.settings['data']}: {sizes['train']} images to train, {sizes['validation']} to validate, "
            f"{sizes['test']} to test; {self.settings['backbone']}; {seeds} seed{'s' if seeds > 1 else ''}."
        ]
        accuracies = [test["accuracy"] for test in self.tests.values()]
        if accuracies:
            middle = statistics.median(accuracies)
            error = 100 * math.sqrt(middle * (1 - middle) / sizes["test"])
            found.append(
                f"The standard error of one accuracy, by the number of test images alone, is {error:.1f} points."
            )
        if seeds == 1:
            found.append("One seed: differences between networks may be those between seeds.")
        return found

    def sheets(self) -> dict[str, Image.Image]:
        """Maps of all networks (of the first seed) side by side, a sheet per class, as in the paper's figures."""
        seed = min(seed for _, seed in self.tests)
        names = [name for name, other in self.tests if other == seed]
        names = names[:1] + names[1:][-(_COLUMNS - 1) :]
        index = json.loads((self.folder / "pictures" / "index.json").read_text(encoding="utf-8"))
        maps = {name: self._maps(name, seed) for name in names}
        found = {}
        for label in dict.fromkeys(entry["label"] for entry in index):
            rows = [
                self._row(number, entry, names, maps, seed)
                for number, entry in enumerate(index)
                if entry["label"] == label
            ]
            found[label] = contact_sheet(rows, names, title=f"CAM of {label}")
        return found

    def _maps(self, name: str, seed: int) -> Tensor:
        return load_file(self.folder / name / f"seed_{seed}" / "pictures.safetensors")["maps"]

    def _row(
        self, number: int, entry: Mapping[str, str], names: Sequence[str], maps: Mapping[str, Tensor], seed: int
    ) -> Row:
        cells = []
        for name in names:
            said = self.tests[name, seed]["pictures"][number]
            right = "" if said["decision"] == entry["label"] else " (wrong)"
            cells.append(Cell(maps[name][number], f"{said['decision']} {said['probability']:.2f}{right}"))
        with Image.open(self.folder / "pictures" / entry["file"]) as picture:
            return Row(picture.convert("RGB"), Path(entry["name"]).name, entry["label"], cells)

    def save(self, out: str | Path | None = None) -> Path:
        """Writes report.md, table.csv and a sheet of maps per class; `out`: FOLDER/report. Gives that folder."""
        to = self.folder / "report" if out is None else Path(out)
        head, rows = self.table()
        lines = ["# Variational information bottleneck", "", markdown((head, rows)), *self.remarks(), ""]
        for label, sheet in self.sheets().items():
            name = f"maps-{''.join(c if c.isalnum() else '-' for c in label)}.png"
            save_image(sheet, to / name)
            lines += [f"![CAM of {label}]({name})", ""]
        write_text(to / "table.csv", _csv([head, *rows]))
        write_text(to / "report.md", "\n".join(lines))
        return to


def report_vib(folder: str | Path) -> VIBReport:
    """What `konkyo train vib` left in a folder. KonkyoError: another folder, or no network that is done."""
    folder = Path(folder)
    path = folder / STUDY
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if settings.get("kind") != "vib":
        raise KonkyoError(f"{folder} holds no study of `konkyo train vib`")
    names = [
        name
        for kind in settings["models"]
        for name in ([f"vib_{beta:g}" for beta in settings["betas"]] if kind == "vib" else [kind])
    ]
    tests = {
        (name, seed): json.loads(test.read_text(encoding="utf-8"))
        for name in names
        for seed in settings["seeds"]
        if (test := folder / name / f"seed_{seed}" / "test.json").is_file()
    }
    if not tests:
        raise KonkyoError(f"no network in {folder} is done yet; `konkyo train vib` with the same options goes on")
    return VIBReport(folder, settings, tests)


def _mean(values: Sequence[float], digits: int) -> str:
    """The mean, and the standard deviation of several."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
