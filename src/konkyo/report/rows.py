"""Rows of a page that are collected image by image, so that no more than small pictures is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from konkyo.errors import KonkyoError
from konkyo.explanation.result import Explanation
from konkyo.report.assets import picture_side, reduced
from konkyo.report.html import accuracy_counts, words_of
from konkyo.report.of_explanations import image_rows
from konkyo.report.page import ImageRow, Page, words
from konkyo.report.truth import accuracy, cards_of, confusion_of


class CollectedRows:
    """The rows of explanations, which come an image or a batch at a time; their pictures are reduced at once."""

    def __init__(self, images: int) -> None:
        """`images`: how many are to come, which decides how large their pictures are."""
        self.side = picture_side(images)
        self.rows: list[ImageRow] = []
        self.assumptions: dict[str, None] = {}
        self.layers: dict[str, str] = {}
        """Of every method."""
        self.others: list[ImageRow] = []
        """Images that are counted, but not shown."""

    def add(self, results: Sequence[Explanation]) -> None:
        """Takes the explanations of an image or a batch, a method each, all of the same rows."""
        if not results or not len(results[0]):
            return
        small: dict[int, Image.Image] = {}
        for row in image_rows(list(results)):
            picture = row.picture
            if picture is not None and id(picture) not in small:
                small[id(picture)] = reduced(picture, self.side)
            maps = tuple(replace(m, values=m.values.detach().cpu().clone()) for m in row.maps)
            self.rows.append(replace(row, picture=None if picture is None else small[id(picture)], maps=maps))
        for result in results:
            self.assumptions |= dict.fromkeys(result.assumptions)
            self.layers.setdefault(result.method, result.layer)

    def count(self, name: str, decision: str, true_label: str) -> None:
        """Takes an image that is not shown, for the counts."""
        self.others.append(ImageRow(name, decision=decision, true_label=true_label))

    def page(self, title: str, *, provenance: Mapping[str, str], command: str = "", notes: Sequence[str] = ()) -> Page:
        """Returns the page of all rows. KonkyoError: there is none."""
        if not self.rows:
            raise KonkyoError("a report needs at least one map; there is none")
        of_image = [*{row.name: row for row in self.rows if row.box is None}.values(), *self.others]
        confusion = confusion_of(of_image)
        correct, n, low, high = accuracy(of_image)
        totals: dict[str, Any] = {}
        if self.others:  # else the page counts its rows itself
            totals["verdict"] = words_of("verdict.wrong", wrong=n - correct, n=n)
            totals["counts"] = (
                (words_of("count.images"), str(len(of_image))),
                *accuracy_counts(correct, n, low, high),
            )
        layers = {f"{method}: layer": layer for method, layer in self.layers.items()}
        return Page(
            title=title,
            rows=tuple(self.rows),
            confusion=confusion,
            classes=cards_of(confusion, self.rows),
            provenance={**provenance, **layers},
            command=command,
            **totals,
            notes=tuple(words(sentence) for sentence in (*notes, *self.assumptions)),
        )
