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
from konkyo.studies.base import TestPicture, diverged_in
from konkyo.studies.report import (
    grouping_remarks,
    open_picture,
    read_settings,
    read_test_maps,
    read_test_pictures,
    save_report,
    study_page,
)
from konkyo.studies.vib.study import NetworkOfStudy, runs_of, uncompressed
from konkyo.training.loop import EPOCHS, read_epochs
from konkyo.utils.files import plain, read_json
from konkyo.utils.statistics import Estimate, paired
from konkyo.utils.words import counted

TITLE = "Variational information bottleneck"
OF_CODE = ("kl", "bits", "kl_over_log_k", "mean", "std", "passed")
CONSISTENCY = ("wt", "L")
NAMES = {"accuracy": "accuracy (points)", "wt": "W/T"}
"""Of columns, where tables call them otherwise."""


@dataclass(frozen=True, eq=False)
class VIBReport:
    """The networks of a study that are tested, and their numbers and maps."""

    folder: Path
    settings: Mapping[str, Any]
    tests: Mapping[tuple[str, int], Mapping[str, Any]]
    """(network, seed) -> what its test.json holds."""

    @property
    def networks(self) -> list[NetworkOfStudy]:
        """Returns all networks that the study is of."""
        return networks_of(self.settings)

    def records(self) -> list[dict[str, Any]]:
        """Returns the rows of networks.csv, one per network and seed, with numbers as they are.

        "relative" is the share, in percent, of the accuracy of the plain network of the same seed.
        """
        rows = []
        for name, kind, noise, beta in self.networks:
            for seed in self.settings["seeds"]:
                if (test := self.tests.get((name, seed))) is None:
                    continue
                base = self.tests.get(("plain", seed), {}).get("accuracy")
                shrunk = test.get("channels", math.nan) if self.settings["reduction"] == "mean" else 1
                rows.append(
                    {"name": name, "model": kind, "noise": noise, "beta": beta}
                    | {"effective_beta": beta / shrunk, "seed": seed}
                    | {"accuracy": 100 * test["accuracy"]}
                    | {"relative": 100 * (test["accuracy"] / base) if base else math.nan}
                    | {"sampled": 100 * test.get("sampled", math.nan), "kappa": test["kappa"]}
                    | {column: test.get(column, math.nan) for column in OF_CODE}
                    | {column: (test.get("maps") or {}).get(column, {}).get("value") for column in self._measured()}
                    | {column: test.get(column, math.nan) for column in CONSISTENCY}
                    | {"blank": test.get("blank", math.nan)}
                )
        return rows

    def _measured(self) -> list[str]:
        """Returns the columns of maps that were measured: against masks, where there are any, and others asked for."""
        return list(dict.fromkeys(metric for test in self.tests.values() for metric in test.get("maps") or ()))

    def table(self) -> Table:
        """The paper's Table 1 has a row per network: accuracy, and its share of the plain network's of the same seed.

        Further columns tell what the code holds, how far the maps of CAM lie on masks, and how alike those of a class
        are. Numbers are means over seeds, with the standard deviation where there are several.
        """
        digits = {"sampled": 2, "kappa": 3, "kl": 1, "kl_over_log_k": 1, "std": 3, "passed": 2}
        of_maps = dict.fromkeys((*self._measured(), *CONSISTENCY), 3)
        head = ["model", "noise", "beta", "effective beta", "accuracy % (relative %)", "12 samples %", "kappa"]
        head += ["KL (nats)", "KL / log K", "std", "bits a channel", *(NAMES.get(c, c) for c in of_maps)]
        if self._measured():
            head, of_maps = [*head, "blank maps"], of_maps | {"blank": 3}
        records, rows = self.records(), list[list[str]]()
        for name, kind, noise, beta in self.networks:
            same = [r for r in records if r["name"] == name]
            if not same:
                continue
            of = {column: [r[column] for r in same] for column in same[0]}
            share = _mean(of["relative"], 2)
            rows.append(
                [kind, noise, *("" if math.isnan(b) else f"{b:.3g}" for b in (beta, of["effective_beta"][0]))]
                + [_mean(of["accuracy"], 2) + (f" ({share})" if share else "")]
                + [_mean(of[c], d) for c, d in (digits | of_maps).items()]
            )
        return head, rows

    def differences(self) -> dict[str, Table]:
        """Returns the paired differences of networks of one seed, with 95 % intervals by Student's t over seeds.

        A row per network: those of all networks to the plain one, and those of a bottleneck to the same noise with
        beta = 0, that is what beta did.
        """
        names = {of.name for of in self.networks}
        zero = {of.name: _without_beta(of) for of in self.networks if of.kind == "vib" and of.beta > 0}
        pairs = {
            "Differences to plain": {of.name: "plain" for of in self.networks if of.name != "plain"},
            "Differences to beta = 0": {name: other for name, other in zero.items() if other in names},
        }
        columns = ["accuracy", *self._measured(), *CONSISTENCY]
        head = ["network", "seeds", *(NAMES.get(column, column) for column in columns)]
        tables = dict[str, Table]()
        for title, of_title in pairs.items():
            rows = [[a, *self._difference(a, b, columns)] for a, b in of_title.items()]
            tables[title] = head, [row for row in rows if row[1] != "0"]
        return tables

    def _difference(self, name: str, other: str, columns: Sequence[str]) -> list[str]:
        """Returns the number of seeds that have both networks, and of every column the difference."""
        rows = {(r["name"], r["seed"]): r for r in self.records()}
        seeds = [seed for seed in self.settings["seeds"] if (name, seed) in rows and (other, seed) in rows]
        cells = [str(len(seeds))]
        for column in columns:
            of = [{s: rows[n, s][column] for s in seeds if rows[n, s][column] is not None} for n in (name, other)]
            known = Estimate.of(a - b for a, b in paired(*of).values())
            digits = 1 if column == "accuracy" else 3
            interval = "" if math.isnan(known.low) else f" [{known.low:+.{digits}f}, {known.high:+.{digits}f}]"
            cells.append(f"{known.mean:+.{digits}f}{interval}" if known.n else "")
        return cells

    def remarks(self) -> list[str]:
        """Returns the sentences that a reader of the table has to know."""
        sizes, seeds = self.settings["sizes"], len({seed for _, seed in self.tests})
        lines = [
            f"{self.settings['data']}: {sizes['train']} images to train, {sizes['validation']} to validate, "
            f"{sizes['test']} to test; {self.settings['backbone']}; {counted(seeds, 'seed')}.",
            *grouping_remarks(self.settings),
        ]
        middle = statistics.median(test["accuracy"] for test in self.tests.values())
        error = 100 * math.sqrt(middle * (1 - middle) / sizes["test"])
        lines.append(f"The standard error of one accuracy, by the number of test images alone, is {error:.1f} points.")
        if seeds == 1:
            lines.append("One seed: differences between networks may be those between seeds.")
        planned = [(of.name, seed) for of in self.networks for seed in self.settings["seeds"]]
        ends = {key: diverged_in(self.folder / key[0] / f"seed_{key[1]}") for key in planned}
        lines += [f"Diverged: {n} of seed {s}, in epoch {end}." for (n, s), end in ends.items() if end is not None]
        left = [key for key in planned if key not in self.tests and ends[key] is None]
        if missing := [f"{name} of seed {seed}" for name, seed in left]:
            lines.append(f"Not done, so rows may be of other seeds: {', '.join(missing)}.")
        if self._measured():
            lines.append("Maps are the positive part of CAM of the label; blank ones are in no mean over maps.")
        lines += self._of_second_stage()
        count = len(self.settings["classes"])
        for (name, seed), test in self.tests.items():
            beta = next(of.beta for of in self.networks if of.name == name)
            lines += [f"{name}, seed {seed}: {why}" for why in uncompressed(test, beta, count)]
        return lines + self._not_measured()

    def _of_second_stage(self) -> list[str]:
        """Returns what is said of ReCAM's second classifier: its last loss, in validation where it was measured."""
        paths = [self.folder / name / f"seed_{seed}" / EPOCHS for name, seed in self.tests if name == "recam"]
        if not paths:
            return []
        last = [read_epochs(path)[-1] for path in paths]
        loss = statistics.fmean(row.get("valid_reactivation", row["train_reactivation"]) for row in last)
        chance = math.log(len(self.settings["classes"]))
        return [
            f"Epochs that ReCAM is trained for more than the others: {self.settings['second']}. Its second "
            f"classifier's loss ends at {loss:.2f} of {chance:.2f} for guessing: near that, its maps are weighed by "
            "chance."
        ]

    def _not_measured(self) -> list[str]:
        """Returns a sentence for every reason why something was not measured, and of which networks that is true."""
        of_reason = dict[str, dict[str, None]]()
        for (name, seed), test in self.tests.items():
            for column, why in (test.get("missing") or {}).items():
                of_reason.setdefault(f"{column}: {why}", {})[f"{name} of seed {seed}"] = None
        return [f"Not measured of {', '.join(networks)}: {why}." for why, networks in of_reason.items()]

    def sheets(self) -> dict[str, Image.Image]:
        """Draws the maps of all networks (of the first seed) side by side, a sheet per class."""
        seed = min(seed for _, seed in self.tests)
        names = [of.name for of in self.networks if (of.name, seed) in self.tests]
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
        shown = self.sheets() if pictures is None else pictures
        tables = {"Networks": self.table(), **self.differences()}
        return study_page(TITLE, self.settings, tables, shown, self.remarks())

    def save(self, out: str | Path | None = None) -> Path:
        """Writes report.md, report.html, report.json, networks.csv and a sheet of maps per class. -> the folder

        `out`: by default FOLDER/report.
        """
        pictures, links = dict[str, Image.Image](), list[str]()
        for number, (label, sheet) in enumerate(self.sheets().items()):
            name = f"maps-{number:03}-{''.join(c if c.isalnum() else '-' for c in label)}.png"
            pictures[name] = sheet
            links += [f"![CAM of {label}]({name})", ""]
        paired = [line for title, table in self.differences().items() for line in _section(title, table)]
        text = "\n".join([f"# {TITLE}", "", markdown(self.table()), *self.remarks(), "", *paired, *links])
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
        for name in (of.name for of in networks_of(settings))
        for seed in settings["seeds"]
        if (test := folder / name / f"seed_{seed}" / "test.json").is_file()
    }
    if not tests:
        raise KonkyoError(f"no network in {folder} is done yet; `konkyo train vib` with the same options goes on")
    return VIBReport(folder, settings, tests)


def networks_of(settings: Mapping[str, Any]) -> list[NetworkOfStudy]:
    """Returns the networks of a study from its settings, which older versions kept without their names.

    Betas of one noise are in order, whenever they were added.
    """
    if "networks" not in settings:
        return runs_of(settings["models"], settings["betas"])
    rows = ((*row[:3], math.nan if row[3] is None else row[3]) for row in settings["networks"])
    networks = [NetworkOfStudy(*row) for row in rows]
    groups = list(dict.fromkeys((of.kind, of.noise) for of in networks))
    return sorted(networks, key=lambda of: (groups.index((of.kind, of.noise)), 0.0 if math.isnan(of.beta) else of.beta))


def _without_beta(of: NetworkOfStudy) -> str:
    """Returns the name of the network of the same noise with beta = 0."""
    return runs_of((of.kind,), (0.0,), (of.noise,))[0].name


def _section(title: str, table: Table) -> list[str]:
    return [f"## {title}", "", markdown(table)] if table[1] else []


def _mean(values: Sequence[float | None], digits: int) -> str:
    """Returns the mean of the values that are known, and the standard deviation of several."""
    known = Estimate.of(value for value in values if value is not None)
    if not known.n:
        return ""
    spread = "" if math.isnan(known.sd) else f" ± {known.sd:.{digits}f}"
    return f"{known.mean:.{digits}f}{spread}"
