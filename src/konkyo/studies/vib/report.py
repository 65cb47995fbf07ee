"""The report of a study of the variational information bottleneck: the paper's Table 1, and maps side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from konkyo.draw.sheets import Cell, Row, contact_sheet
from konkyo.errors import KonkyoError
from konkyo.evaluation.result import Table, markdown
from konkyo.report.page import Page
from konkyo.studies.base import TestPicture
from konkyo.studies.report import (
    grouping_remarks,
    open_picture,
    read_settings,
    read_test_maps,
    read_test_pictures,
    save_report,
    study_page,
)
from konkyo.studies.vib.study import runs_of
from konkyo.training.loop import EPOCHS, read_epochs
from konkyo.utils.files import plain, read_json
from konkyo.utils.statistics import Estimate

TITLE = "Variational information bottleneck"


@dataclass(frozen=True, eq=False)
class VIBReport:
    """The networks of a study that are tested, and their numbers and maps."""

    folder: Path
    settings: Mapping[str, Any]
    tests: Mapping[tuple[str, int], Mapping[str, Any]]
    """(network, seed) -> what its test.json holds."""

    @property
    def networks(self) -> list[tuple[str, str, float]]:
        """Returns (name, kind, beta) of all networks that the study is of."""
        return runs_of(self.settings["models"], self.settings["betas"])

    def records(self) -> list[dict[str, Any]]:
        """Returns the rows of networks.csv, one per network and seed, with numbers as they are.

        "relative" is the share, in percent, of the accuracy of the plain network of the same seed.
        """
        rows = []
        for name, kind, beta in self.networks:
            for seed in self.settings["seeds"]:
                if (test := self.tests.get((name, seed))) is None:
                    continue
                base = self.tests.get(("plain", seed), {}).get("accuracy")
                shrunk = test.get("channels", math.nan) if self.settings["reduction"] == "mean" else 1
                rows.append(
                    {"model": kind, "beta": beta, "effective_beta": beta / shrunk, "seed": seed}
                    | {"accuracy": 100 * test["accuracy"]}
                    | {"relative": 100 * (test["accuracy"] / base) if base else math.nan}
                    | {"sampled": 100 * test.get("sampled", math.nan), "kappa": test["kappa"]}
                    | {column: test.get(column, math.nan) for column in ("kl", "bits", "mean", "std")}
                    | {column: (test.get("maps") or {}).get(column, {}).get("value") for column in self._measured()}
                    | {"blank": test.get("blank", math.nan)}
                )
        return rows

    def _measured(self) -> list[str]:
        """Returns the metrics of maps against masks, where there are any."""
        return list(dict.fromkeys(metric for test in self.tests.values() for metric in test.get("maps") or ()))

    def table(self) -> Table:
        """The paper's Table 1 has a row per network: accuracy, and its share of the plain network's of the same seed.

        Further columns tell what the code holds, and how far the maps of CAM lie on masks. Numbers are means over
        seeds, with the standard deviation where there are several.
        """
        head = ["model", "beta", "effective beta", "accuracy % (relative %)", "12 samples %", "kappa"]
        head += ["KL (nats)", "bits", "std", *self._measured(), *(["blank maps"] if self._measured() else [])]
        records, rows = self.records(), list[list[str]]()
        for _, kind, beta in self.networks:
            same = [r for r in records if r["model"] == kind and (r["beta"] == beta or math.isnan(beta))]
            if not same:
                continue
            of = {column: [r[column] for r in same] for column in same[0]}
            share = _mean(of["relative"], 2)
            rows.append(
                [kind, *("" if math.isnan(b) else f"{b:.3g}" for b in (beta, of["effective_beta"][0]))]
                + [_mean(of["accuracy"], 2) + (f" ({share})" if share else "")]
                + [_mean(of[c], d) for c, d in (("sampled", 2), ("kappa", 3), ("kl", 1), ("bits", 1), ("std", 3))]
                + [_mean(of[c], 3) for c in (*self._measured(), *(["blank"] if self._measured() else []))]
            )
        return head, rows

    def remarks(self) -> list[str]:
        """Returns the sentences that a reader of the table has to know."""
        sizes, seeds = self.settings["sizes"], len({seed for _, seed in self.tests})
        lines = [
            f"{self.settings['data']}: {sizes['train']} images to train, {sizes['validation']} to validate, "
            f"{sizes['test']} to test; {self.settings['backbone']}; {seeds} seed{'s' if seeds > 1 else ''}.",
            *grouping_remarks(self.settings),
        ]
        middle = statistics.median(test["accuracy"] for test in self.tests.values())
        error = 100 * math.sqrt(middle * (1 - middle) / sizes["test"])
        lines.append(f"The standard error of one accuracy, by the number of test images alone, is {error:.1f} points.")
        if seeds == 1:
            lines.append("One seed: differences between networks may be those between seeds.")
        planned = [(name, seed) for name, _, _ in self.networks for seed in self.settings["seeds"]]
        if missing := [f"{name} of seed {seed}" for name, seed in planned if (name, seed) not in self.tests]:
            lines.append(f"Not done, so rows may be of other seeds: {', '.join(missing)}.")
        if self._measured():
            lines.append("Maps are the positive part of CAM of the label; blank ones are in no mean over maps.")
        if losses := self._second_stage():
            chance = math.log(len(self.settings["classes"]))
            lines.append(
                f"Epochs that ReCAM is trained for more than the others: {self.settings['second']}. Its second "
                f"classifier's loss ends at {statistics.fmean(losses):.2f} of {chance:.2f} for guessing: near that, "
                "its maps are weighed by chance."
            )
        return lines

    def _second_stage(self) -> list[float]:
        """Returns the last loss of every ReCAM's second classifier."""
        paths = [self.folder / name / f"seed_{seed}" / EPOCHS for name, seed in self.tests if name == "recam"]
        return [read_epochs(path)[-1]["train_reactivation"] for path in paths]

    def sheets(self) -> dict[str, Image.Image]:
        """Draws the maps of all networks (of the first seed) side by side, a sheet per class."""
        seed = min(seed for _, seed in self.tests)
        names = [name for name, _, _ in self.networks if (name, seed) in self.tests]
        pictures = read_test_pictures(self.folder)
        maps = {name: read_test_maps(self.folder / name / f"seed_{seed}", len(pictures)) for name in names}
        sheets = {}
        for label in sorted({picture.label for picture in pictures}):
            rows = [
                self._row(number, picture, names, maps, seed)
                for number, picture in enumerate(pictures)
                if picture.label == label
            ]
            sheets[label] = contact_sheet(rows, names, title=f"CAM of {label}")
        return sheets

    def _row(
        self, number: int, picture: TestPicture, names: Sequence[str], maps: Mapping[str, Tensor], seed: int
    ) -> Row:
        cells = []
        for name in names:
            decided = self.tests[name, seed]["pictures"][number]
            right = "" if decided["decision"] == picture.label else " (wrong)"
            blank = "" if maps[name][number].any() else ", no map"
            cells.append(Cell(maps[name][number], f"{decided['decision']} {decided['probability']:.2f}{right}{blank}"))
        return Row(open_picture(picture), Path(picture.name).name, picture.label, cells)

    def description(self) -> dict[str, Any]:
        """Returns all numbers, as plain JSON values."""
        return plain(  # type: ignore[no-any-return]
            {"study": dict(self.settings), "networks": self.records(), "remarks": self.remarks()}
        )

    def page(self, pictures: Mapping[str, Image.Image] | None = None) -> Page:
        """Returns the page of the study; `pictures`: those of `sheets`, where they are drawn already."""
        drawn = self.sheets() if pictures is None else pictures
        return study_page(TITLE, self.settings, {"Networks": self.table()}, drawn, self.remarks())

    def save(self, out: str | Path | None = None) -> Path:
        """Writes report.md, report.html, report.json, networks.csv and a sheet of maps per class. -> the folder

        `out`: by default FOLDER/report.
        """
        pictures, links = dict[str, Image.Image](), list[str]()
        for number, (label, sheet) in enumerate(self.sheets().items()):
            name = f"maps-{number:03}-{''.join(c if c.isalnum() else '-' for c in label)}.png"
            pictures[name] = sheet
            links += [f"![CAM of {label}]({name})", ""]
        text = "\n".join([f"# {TITLE}", "", markdown(self.table()), *self.remarks(), "", *links])
        folder = self.folder / "report" if out is None else Path(out)
        return save_report(
            folder, text, self.description(), {"networks": self.records()}, pictures, self.page(pictures)
        )


def report_vib(folder: str | Path) -> VIBReport:
    """Returns the report of what `konkyo train vib` left in a folder.

    KonkyoError: another folder, no network that is done, a file that cannot be read.
    """
    folder = Path(folder)
    settings = read_settings(folder, "vib")
    tests = {
        (name, seed): read_json(test)
        for name, _, _ in runs_of(settings["models"], settings["betas"])
        for seed in settings["seeds"]
        if (test := folder / name / f"seed_{seed}" / "test.json").is_file()
    }
    if not tests:
        raise KonkyoError(f"no network in {folder} is done yet; `konkyo train vib` with the same options goes on")
    return VIBReport(folder, settings, tests)


def _mean(values: Sequence[float | None], digits: int) -> str:
    """Returns the mean of the values that are known, and the standard deviation of several."""
    known = Estimate.of(value for value in values if value is not None)
    if not known.n:
        return ""
    spread = "" if math.isnan(known.sd) else f" ± {known.sd:.{digits}f}"
    return f"{known.mean:.{digits}f}{spread}"
