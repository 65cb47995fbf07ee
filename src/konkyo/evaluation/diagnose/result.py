"""The result of diagnose(): findings, what is known of every image and class, on disk and back."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from konkyo.data.images import open_image
from konkyo.errors import KonkyoError
from konkyo.evaluation.consistency.result import Consistency
from konkyo.evaluation.diagnose.findings import SEVERITIES, Evidence, Finding, Text
from konkyo.evaluation.result import Table, number, with_nan
from konkyo.utils import markup
from konkyo.utils.files import csv_of, plain, read_json, replacing, write_text

SEVERITY_WORDS: Mapping[str, Text] = {
    "high": {"en": "high", "ja": "重大"},
    "medium": {"en": "medium", "ja": "中程度"},
    "low": {"en": "low", "ja": "軽度"},
    "unknown": {"en": "unknown", "ja": "不明"},
    "ok": {"en": "ok", "ja": "問題なし"},
}
DOCUMENT, MAPS, EVIDENCE, ORIGIN = "findings.json", "maps.safetensors", "evidence", "provenance.json"


@dataclass(frozen=True)
class DiagnosedImage:
    """What is known of one image."""

    name: str
    decision: str
    probability: float
    """Of the decision."""
    label: str = ""
    """"" where it is not known."""
    label_probability: float = math.nan
    suspicion: float = math.nan
    """Its score in the list of images that are probably wrong; higher is more suspicious."""
    flags: tuple[str, ...] = ()
    """"wrong", "unsure", "label?", "cue", "duplicate"."""
    why: Text = field(default_factory=dict)
    """Why it is wrong, where it is."""
    top: tuple[tuple[str, float], ...] = ()
    """The five most probable classes with their probabilities."""
    neighbours: tuple[tuple[str, str], ...] = ()
    """(name, label) of the five training images that it resembles most, where these are known."""
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def correct(self) -> bool | None:
        """Returns whether the decision is the label; None where that is not known."""
        return self.decision == self.label if self.label else None


@dataclass(frozen=True)
class DiagnosedClass:
    """What is known of one class."""

    name: str
    n: int
    """Images with this label."""
    recall: float
    precision: float
    confused: tuple[tuple[str, int], ...] = ()
    """(other class, images of either that are taken for the other), the most first."""
    alarm: Text = field(default_factory=dict)
    """The finding that the class rests on a cue, where there is one."""


@dataclass(frozen=True)
class ImageList:
    """A list of images to look at for one reason."""

    subject: str
    title: Text
    note: Text
    images: tuple[str, ...]
    used_labels: bool


@dataclass(frozen=True, eq=False)
class DiagnosisReport:
    """The report of a diagnosis: findings, the worst first, and what is known of every image and class."""

    findings: tuple[Finding, ...]
    images: tuple[DiagnosedImage, ...]
    classes: tuple[DiagnosedClass, ...]
    consistency: Consistency | None
    settings: Mapping[str, Any]
    provenance: Mapping[str, str]
    not_asked: Mapping[str, Text]
    """Which questions were not asked, and why."""
    lists: tuple[ImageList, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """"maps" (n, h, w) of the label, "eigen" (n, h, w), "decision_maps" (n, h, w), "contrasts" (m, h, w) of the
    wrong images and "wrong" (m,) their indices, "mean_maps" (K, h, w) of the classes in order of the model."""
    notes: tuple[str, ...] = ()
    command: str = ""
    """The command line that makes it again."""
    thumbnail: Callable[[int], Image.Image] | None = None
    """An image's index -> its picture as the model sees it, while the data is at hand; not saved."""

    def __repr__(self) -> str:
        """Returns one line with the counts of findings."""
        model = self.settings.get("model", "model")
        return f"DiagnosisReport({model}, {len(self.images)} images; {self._counts('en')})"

    def _counts(self, lang: str) -> str:
        counts = Counter(finding.severity for finding in self.findings)
        return ", ".join(f"{counts[s]} {SEVERITY_WORDS[s][lang]}" for s in SEVERITIES if counts[s])

    @property
    def worst(self) -> str:
        """Returns the severity of the first finding; "ok" without findings."""
        return self.findings[0].severity if self.findings else "ok"

    def of(self, question: str) -> tuple[Finding, ...]:
        """Returns the findings of one question."""
        return tuple(finding for finding in self.findings if finding.question == question)

    def table(self, lang: str = "en") -> Table:
        """The table has a line per finding, the worst first."""
        head = ["severity", "question", "subject", "finding", "value", "95 %", "p", "n"]
        rows = []
        for f in self.findings:
            interval = "" if math.isnan(f.low) else f"{number(f.low)} to {number(f.high)}"
            p = "" if math.isnan(f.p_adjusted) else number(f.p_adjusted)
            value = "" if math.isnan(f.value) else number(f.value)
            severity = _in(SEVERITY_WORDS[f.severity], lang)
            rows.append([severity, f.question, f.subject, _in(f.sentence, lang), value, interval, p, str(f.n)])
        return head, rows

    def lines(self, lang: str = "en") -> list[str]:
        """Returns a line per finding, the worst first, and one per question that was not asked."""
        lines = [
            f"{_in(SEVERITY_WORDS[f.severity], lang)}: {f.question}{f' [{f.subject}]' if f.subject else ''}: "
            f"{_in(f.sentence, lang)}"
            for f in self.findings
        ]
        template = {"en": "{question}: not asked: {reason}", "ja": "{question}：未実施：{reason}"}
        return lines + [
            _in(template, lang).format(question=name, reason=_in(reason, lang))
            for name, reason in self.not_asked.items()
        ]

    def remarks(self) -> list[str]:
        """Returns the sentences that a reader has to know."""
        return [
            "A p-value says that an effect is real, never that it is wrong to use it: a horizon is a real cue of a "
            "coast. The person judges.",
            "Blind spots: cues that are spread out (a colour cast, blur, noise), cues in all classes, and cues inside "
            "the object.",
            *self.notes,
        ]

    def markdown(self, lang: str = "en") -> str:
        """The text holds every finding with its numbers and what to do next."""
        parts = [f"# {self.settings.get('model', 'model')}: {self._counts(lang)}\n"]
        for f in self.findings:
            numbers = [f"{f.statistic}: {number(f.value)}"] if not math.isnan(f.value) else []
            numbers += [f"95 % {number(f.low)} to {number(f.high)}"] if not math.isnan(f.low) else []
            numbers += [f"p {number(f.p_adjusted)}"] if not math.isnan(f.p_adjusted) else []
            numbers += [f"n {f.n}"] if f.n else []
            numbers += [f"threshold {number(f.threshold)}"] if not math.isnan(f.threshold) else []
            title = f"{_in(SEVERITY_WORDS[f.severity], lang)}: {f.question}{f', {f.subject}' if f.subject else ''}"
            parts.append(f"## {title}\n\n{_in(f.sentence, lang)}\n\n{'; '.join(numbers)}\n\n{_in(f.next_step, lang)}\n")
        if self.not_asked:
            parts.append("## not asked\n")
            parts += [f"- {name}: {_in(reason, lang)}" for name, reason in self.not_asked.items()]
        return "\n".join([*parts, "", *self.remarks()]) + "\n"

    def _repr_html_(self) -> str:
        """Returns the findings as a table, for notebooks."""
        rows = [
            [f.severity, f.question, f.subject, _in(f.sentence, "en"), _in(f.next_step, "en")] for f in self.findings
        ]
        rows += [["not asked", name, "", _in(reason, "en"), ""] for name, reason in self.not_asked.items()]
        head = ("severity", "question", "subject", "finding", "what next")
        cells = [[markup.escaped(cell) for cell in row] for row in rows]
        return markup.block(markup.title(repr(self)), markup.table(head, cells))

    # --- on disk ------------------------------------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """The dict holds everything but pictures, maps and the provenance, as plain JSON values."""
        return plain(  # type: ignore[no-any-return]
            {
                "findings": [_finding_values(place, f) for place, f in enumerate(self.findings)],
                "not_asked": {name: dict(reason) for name, reason in self.not_asked.items()},
                "settings": dict(self.settings),
                "images": [asdict(image) for image in self.images],
                "classes": [asdict(card) for card in self.classes],
                "lists": [asdict(entry) for entry in self.lists],
                "notes": list(self.notes),
            }
        )

    def save(self, folder: str | Path, *, lang: str = "en") -> Path:
        """Writes findings.json, findings.md, images.csv, classes.csv, maps.safetensors and evidence/ -> the folder.

        Consistency goes into the folder consistency/, where it was measured. The same data and settings give the same
        findings.json, byte by byte; the date is in provenance.json.
        """
        folder = Path(folder)
        for place, finding in enumerate(self.findings):
            for name, evidence in zip(_evidence_names(place, finding), finding.evidence, strict=True):
                with replacing(folder / EVIDENCE / name) as temporary:
                    evidence.picture.convert("RGB").save(temporary, format="webp", quality=85)
        if self.consistency is not None:
            self.consistency.save(folder / "consistency")
        if self.tensors:
            with replacing(folder / MAPS) as temporary:
                save_file({name: t.contiguous().clone() for name, t in self.tensors.items()}, temporary)
        texts = {
            "findings.md": self.markdown(lang),
            "images.csv": csv_of(_row(image) for image in self.images),
            "classes.csv": csv_of({"class": c.name, **_row(c)} for c in self.classes),
            ORIGIN: json.dumps({"provenance": dict(self.provenance), "command": self.command}, indent=1),
            DOCUMENT: json.dumps(self.description(), indent=1, ensure_ascii=False),  # the last: where it is, all is
        }
        for name, text in texts.items():
            write_text(folder / name, text)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> DiagnosisReport:
        """Reads the report that `save` wrote, with its evidence pictures. KonkyoError: the folder holds none."""
        folder = Path(folder)
        try:
            values = read_json(folder / DOCUMENT)
            origin = read_json(folder / ORIGIN)
            tensors = load_file(folder / MAPS) if (folder / MAPS).is_file() else {}
            consistency = folder / "consistency"
            return cls(
                tuple(_finding_of(folder, f) for f in values["findings"]),
                tuple(DiagnosedImage(**_read(DiagnosedImage, image)) for image in values["images"]),
                tuple(DiagnosedClass(**_read(DiagnosedClass, card)) for card in values["classes"]),
                Consistency.load(consistency) if consistency.is_dir() else None,
                values["settings"],
                origin["provenance"],
                values["not_asked"],
                tuple(ImageList(**_read(ImageList, entry)) for entry in values["lists"]),
                tensors,
                tuple(values["notes"]),
                origin["command"],
            )
        except Exception as error:  # damaged files fail in every possible way
            raise KonkyoError(f"{folder} holds no saved diagnosis: {error}") from error


def _in(text: Text, lang: str) -> str:
    """Returns the words in a language; in English where it lacks them."""
    return text.get(lang) or text.get("en", "")


def _row(entry: DiagnosedImage | DiagnosedClass) -> dict[str, Any]:
    """Returns one line of a csv."""
    row: dict[str, Any] = {}
    for name, value in asdict(entry).items():
        if name in ("top", "neighbours"):
            continue
        if isinstance(value, tuple):
            row[name] = "; ".join(" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
        elif isinstance(value, Mapping):
            row |= {name: value["en"]} if "en" in value else {} if name in ("why", "alarm") else dict(value)
        else:
            row[name] = value
    return row


def _evidence_names(place: int, finding: Finding) -> list[str]:
    return [f"{place:03d}-{finding.question}-{index}.webp" for index in range(len(finding.evidence))]


def _finding_values(place: int, finding: Finding) -> dict[str, Any]:
    values = {f.name: getattr(finding, f.name) for f in fields(finding)}
    values["evidence"] = [
        {"file": name, "caption": dict(evidence.caption)}
        for name, evidence in zip(_evidence_names(place, finding), finding.evidence, strict=True)
    ]
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _finding_of(folder: Path, values: Mapping[str, Any]) -> Finding:
    known = {name: value for name, value in with_nan(values).items() if name != "evidence"}
    evidence = []
    for entry in values["evidence"]:
        if entry["file"] != Path(entry["file"]).name:
            raise KonkyoError(f"evidence lies in {folder / EVIDENCE}; got {entry['file']!r}")
        evidence.append(Evidence(open_image(folder / EVIDENCE / entry["file"]), entry["caption"]))
    finding = Finding(**known)
    return replace(finding, evidence=tuple(evidence), values=with_nan(finding.values), images=tuple(finding.images))


def _read(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a kind of entry, with tuples for lists and NaN for numbers that JSON does not know."""
    names = {f.name for f in fields(kind)}
    known = {name: value for name, value in with_nan(values).items() if name in names}
    for name, value in known.items():
        if isinstance(value, list):
            known[name] = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        elif isinstance(value, dict):
            known[name] = with_nan(value)
    return known
