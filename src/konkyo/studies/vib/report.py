"""The report of a study of the variational information bottleneck: the paper's Table 1, and maps side by side."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from konkyo.draw.sheets import Cell, Row, contact_sheet, save_image
from konkyo.errors import KonkyoError
from konkyo.evaluation.result import Table, markdown
from konkyo.studies.base import MAPS, STUDY, read_maps
from konkyo.studies.vib.study import runs_of
from konkyo.training.loop import EPOCHS, read_epochs
from konkyo.utils.files import csv_of, plain, read_json, write_text


@dataclass(frozen=True, eq=False)
class VIBReport:
    """What came out of a study."""

    folder: Path
    settings: Mapping[str, Any]
    tests: Mapping[tuple[str, int], Mapping[str, Any]]
    """(network, seed) -> what its test.json holds."""

    @property
    def networks(self) -> list[tuple[str, str, float]]:
        """(name, kind, beta) of all that the study is of."""
        return runs_of(self.settings["models"], self.settings["betas"])

    def records(self) -> list[dict[str, Any]]:
        """A row per network and seed, numbers as they are; "relative" is the share, in percent, of the accuracy of the
        plain network of the same seed."""
        found = []
        for name, kind, beta in self.networks:
            for seed in self.settings["seeds"]:
                if (test := self.tests.get((name, seed))) is None:
                    continue
                base = self.tests.get(("plain", seed), {}).get("accuracy")
                shrunk = test.get("channels", math.nan) if self.settings["reduction"] == "mean" else 1
                found.append(
                    {"model": kind, "beta": beta, "effective_beta": beta / shrunk, "seed": seed}
                    | {"accuracy": 100 * test["accuracy"]}
                    | {"relative": 100 * (test["accuracy"] / base) if base else math.nan}
                    | {"sampled": 100 * test.get("sampled", math.nan), "kappa": test["kappa"]}
                    | {column: test.get(column, math.nan) for column in ("kl", "bits", "mean", "std")}
                    | {column: (test.get("maps") or {}).get(column, {}).get("value") for column in self._measured()}
                    | {"blank": test.get("blank", math.nan)}
                )
        return found

    def _measured(self) -> list[str]:
        """The metrics of maps against masks, where there are any."""
        return list(dict.fromkeys(metric for test in self.tests.values() for metric in test.get("maps") or ()))

    def table(self) -> Table:
        """A row per network: the paper's Table 1 (accuracy, and its share of the plain network's of the same seed).

        Then what the code holds, and how far the maps of CAM lie on masks; means over seeds, with the standard
        deviation where there are several.
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
        """What a reader of the table should know."""
        sizes, seeds = self.settings["sizes"], len({seed for _, seed in self.tests})
        found = [
            f"{self.settings['data']}: {sizes['train']} images to train, {sizes['validation']} to validate, "
            f"{sizes['test']} to test; {self.settings['backbone']}; {seeds} seed{'s' if seeds > 1 else ''}."
        ]
        middle = statistics.median(test["accuracy"] for test in self.tests.values())
        error = 100 * math.sqrt(middle * (1 - middle) / sizes["test"])
        found.append(f"The standard error of one accuracy, by the number of test images alone, is {error:.1f} points.")
        if seeds == 1:
            found.append("One seed: differences between networks may be those between seeds.")
        wanted = [(name, seed) for name, _, _ in self.networks for seed in self.settings["seeds"]]
        if missing := [f"{name} of seed {seed}" for name, seed in wanted if (name, seed) not in self.tests]:
            found.append(f"Not done, so rows may be of other seeds: {', '.join(missing)}.")
        if self._measured():
            found.append("Maps are the positive part of CAM of the label; blank ones are in no mean over maps.")
        if losses := self._second_stage():
            chance = math.log(len(self.settings["classes"]))
            found.append(
                f"Epochs that ReCAM is trained for more than the others: {self.settings['second']}. Its second "
                f"classifier's loss ends at {statistics.fmean(losses):.2f} of {chance:.2f} for guessing: near that, "
                "its maps are weighed by chance."
            )
        return found

    def _second_stage(self) -> list[float]:
        """The last losses of ReCAM's second classifiers."""
        paths = [self.folder / name / f"seed_{seed}" / EPOCHS for name, seed in self.tests if name == "recam"]
        return [read_epochs(path)[-1]["train_reactivation"] for path in paths]

    def sheets(self) -> dict[str, Image.Image]:
        """Maps of all networks (of the first seed) side by side, a sheet per class, as in the paper's figures."""
        seed = min(seed for _, seed in self.tests)
        names = [name for name, _, _ in self.networks if (name, seed) in self.tests]
        index = read_json(self.folder / "pictures" / "index.json")
        maps = {name: self._maps(name, seed, len(index)) for name in names}
        found = {}
        for label in sorted({entry["label"] for entry in index}):
            rows = [
                self._row(number, entry, names, maps, seed)
                for number, entry in enumerate(index)
                if entry["label"] == label
            ]
            found[label] = contact_sheet(rows, names, title=f"CAM of {label}")
        return found

    def _maps(self, name: str, seed: int, count: int) -> Tensor:
        own = self.folder / name / f"seed_{seed}"
        maps = read_maps(own)
        if len(maps) != count:
            raise KonkyoError(f"{own / MAPS} has {len(maps)} maps of {count} pictures")
        return maps

    def _row(
        self, number: int, entry: Mapping[str, str], names: Sequence[str], maps: Mapping[str, Tensor], seed: int
    ) -> Row:
        cells = []
        for name in names:
            said = self.tests[name, seed]["pictures"][number]
            right = "" if said["decision"] == entry["label"] else " (wrong)"
            blank = "" if maps[name][number].any() else ", no map"
            cells.append(Cell(maps[name][number], f"{said['decision']} {said['probability']:.2f}{right}{blank}"))
        with Image.open(self.folder / "pictures" / entry["file"]) as picture:
            return Row(picture.convert("RGB"), Path(entry["name"]).name, entry["label"], cells)

    def description(self) -> dict[str, Any]:
        """All numbers, as plain JSON values."""
        return plain(  # type: ignore[no-any-return]
            {"study": dict(self.settings), "networks": self.records(), "remarks": self.remarks()}
        )

    def save(self, out: str | Path | None = None) -> Path:
        """Writes report.md, report.json, networks.csv and a sheet of maps per class; `out`: FOLDER/report. Gives that
        folder."""
        to = self.folder / "report" if out is None else Path(out)
        lines = ["# Variational information bottleneck", "", markdown(self.table()), *self.remarks(), ""]
        for number, (label, sheet) in enumerate(self.sheets().items()):
            name = f"maps-{number:03}-{''.join(c if c.isalnum() else '-' for c in label)}.png"
            save_image(sheet, to / name)
            lines += [f"![CAM of {label}]({name})", ""]
        write_text(to / "networks.csv", csv_of(self.records()))
        write_text(to / "report.json", json.dumps(self.description(), indent=1) + "\n")
        write_text(to / "report.md", "\n".join(lines))
        return to


def report_vib(folder: str | Path) -> VIBReport:
    """What `konkyo train vib` left in a folder. KonkyoError: another folder, no network that is done, a file that
    cannot be read."""
    folder = Path(folder)
    path = folder / STUDY
    settings = read_json(path) if path.is_file() else None
    if not isinstance(settings, dict) or settings.get("kind") != "vib":
        raise KonkyoError(f"{folder} holds no study of `konkyo train vib`")
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
    """The mean of those that are known, and the standard deviation of several."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"
