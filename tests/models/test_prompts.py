"""Networks that read text beside the image become networks of images alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from konkyo.models.prompts import Prompts, Texts


class Reader(nn.Module):
    """Its logits are those of a linear layer times the length of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor, length: int) -> Tensor:
        """Returns (N, 2)."""
        logits: Tensor = self.head(self.body(images).relu().mean((2, 3))) * length
        return logits


def reader(default: str | None = None) -> konkyo.Model:
    def bind(question: str) -> dict[str, Any]:
        return {"call": lambda module, images: module(images, len(question)), "classes": ("no", "yes")}

    return konkyo.Model(Reader().eval(), prompts=Prompts("question", bind, default))


def test_a_question_makes_a_classifier() -> None:
    model, images = reader(), torch.rand(2, 3, 8, 8)
    result = konkyo.explain(model, images, question="what?", target="yes")
    expected = model.module(images, 5)[:, 1]
    torch.testing.assert_close(result.scores, expected.detach())
    assert result.labels == ("yes", "yes")


def test_every_image_may_have_a_question_of_its_own() -> None:
    model, images = reader(), torch.rand(3, 3, 8, 8)
    result = konkyo.explain(model, images, question=["a", "abcd", "a"], target="yes")
    singles = [
        konkyo.explain(model, images[i : i + 1], question=q, target="yes") for i, q in enumerate(("a", "abcd", "a"))
    ]
    torch.testing.assert_close(result.signed, torch.cat([single.signed for single in singles]))
    assert result.image_index.tolist() == [0, 1, 2]
    with pytest.raises(konkyo.KonkyoError, match="one per image, 3 here"):
        konkyo.explain(model, images, question=["a", "b"], target="yes")


def test_a_question_that_is_missing_or_that_nobody_reads() -> None:
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(konkyo.KonkyoError, match="give question="):
        konkyo.explain(reader(), images, target=1)
    assert len(konkyo.explain(reader("why"), images, target=1)) == 1
    with pytest.raises(konkyo.KonkyoError, match="reads no text"):
        konkyo.explain(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), images, question="why", target=1)
    with pytest.raises(konkyo.KonkyoError, match="reads question="):
        reader().prompted(texts=["a cat"])


def test_texts_in_templates() -> None:
    texts = Texts.of(["cat", "dog"], ["a photo of a {}", "{}"])
    assert texts.names == ("cat", "dog")
    assert texts.sentences == (("a photo of a cat", "cat"), ("a photo of a dog", "dog"))
    for wrong in ("cat", [], ["cat", "cat"], ["cat", " "], ["cat", 3]):
        with pytest.raises(konkyo.KonkyoError, match="text"):
            Texts.of(wrong)  # type: ignore[arg-type]
    with pytest.raises(konkyo.KonkyoError, match="template"):
        Texts.of(["cat"], "a photo")
