"""Similarity: how near the embedding of an image is to that of a reference."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from konkyo.errors import KonkyoError, unknown
from konkyo.targets.base import BaseTarget, Outputs
from konkyo.targets.specs import number_of, spec, with_settings

Kind: TypeAlias = Literal["dot", "cosine", "distance"]


@dataclass(frozen=True)
class Similarity(BaseTarget):
    """This target is how near an embedding f is to a reference g. Output (N, D) -> (N,), higher is nearer.

    - "dot", f . g / (|f0| |g|), has the length |f0| of the explained image's own embedding held fixed. Its value there
      is the cosine, and evidence for it is readable, since it is linear in f.
    - "cosine", f . g / (|f| |g|), does not change with the length of f. So at a layer from which f is linear, the
      evidence for it sums to exactly 0: as much of a map is negative as positive.
    - "distance", -|f - g|, is that of networks whose embeddings are compared by their Euclidean distance.

    `reference`: a picture, a path, a prepared tensor, an embedding (D,), or several of one sort, of which the mean is
    taken: of embeddings of length 1, and for the distance of embeddings as they are. `threshold` is taken off, so that
    the sign of what is left is the decision "the same" or "another".
    """

    reference: Any
    kind: Kind = "dot"
    threshold: float | None = None
    name: str = ""
    """What the reference is called; None given, its file's name."""
    length: float | None = None
    """|f0|, which `explain` fills in; None: every embedding's own length, without its gradient."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown("kind of similarity", self.kind, get_args(Kind))
        if self.threshold is not None and not (
            isinstance(self.threshold, (int, float)) and math.isfinite(self.threshold)
        ):
            raise KonkyoError(f"a threshold is a finite number; got {self.threshold!r}")
        if isinstance(self.reference, (list, tuple)) and not self.reference:
            raise KonkyoError("a reference is an image, an embedding, or several of them; got an empty list")
        if (numbers := _embeddings(self.reference)) is not None:
            object.__setattr__(self, "reference", self._mean(numbers))
        elif not self.name:
            object.__setattr__(self, "name", _name_of(self.reference))

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the similarity of every image. KonkyoError: no embeddings (N, D), or of another length."""
        embeddings = embeddings_of(output)
        reference = embeddings.new_tensor(self.embedding)
        if embeddings.shape[1:] != reference.shape:
            raise KonkyoError(
                f"the reference has an embedding of {len(reference)} numbers, the image one of {embeddings.shape[1]}: "
                "both come from one network"
            )
        value: Tensor = self._value(embeddings, reference) - (self.threshold or 0.0)
        return value

    def _value(self, embeddings: Tensor, reference: Tensor) -> Tensor:
        if self.kind == "distance":
            distance: Tensor = torch.linalg.vector_norm(embeddings - reference, dim=1)
            return -distance
        direction = normalize(reference, dim=0)
        if self.kind == "cosine":
            cosine: Tensor = normalize(embeddings, dim=1) @ direction
            return cosine
        norm = torch.linalg.vector_norm(embeddings, dim=1).detach()
        length = norm if self.length is None else norm.new_tensor(self.length)
        relative: Tensor = embeddings @ direction / length.clamp_min(torch.finfo(norm.dtype).tiny)
        return relative

    @property
    def embedding(self) -> tuple[float, ...]:
        """Returns the reference's embedding (D,). KonkyoError: it is a picture that no network has seen yet."""
        if isinstance(self.reference, tuple) and all(isinstance(number, float) for number in self.reference):
            return self.reference
        raise KonkyoError(
            "the reference is an image, whose embedding is not known yet: give the target to konkyo.explain, or the "
            "embedding itself, konkyo.Similarity(network(image)[0])"
        )

    def bound(self, outputs: Outputs) -> Similarity:
        """Returns it with the embedding of the reference, which the network makes."""
        if isinstance(self.reference, tuple) and all(isinstance(number, float) for number in self.reference):
            return self
        several = list(self.reference) if isinstance(self.reference, (list, tuple)) else [self.reference]
        embeddings = torch.cat([embeddings_of(outputs(image)) for image in several])
        return replace(self, reference=self._mean(embeddings))

    def fixed(self, output: Tensor) -> Similarity:
        """Returns it with the length of the explained image's own embedding."""
        return replace(self, length=float(torch.linalg.vector_norm(embeddings_of(output))))

    def _mean(self, embeddings: Tensor) -> tuple[float, ...]:
        """Returns the mean of embeddings (M, D). KonkyoError: one that is not finite, or has no direction."""
        embeddings = embeddings.detach().double()
        if not bool(embeddings.isfinite().all()) or (self.kind != "distance" and bool((embeddings == 0).all(1).any())):
            raise KonkyoError("the embedding of a reference is not finite, or all zeros, which has no direction")
        if len(embeddings) == 1:
            mean = embeddings[0]
        else:
            mean = (embeddings if self.kind == "distance" else normalize(embeddings, dim=1)).mean(0)
        return tuple(mean.tolist())

    def in_words(self, label: str, score: float) -> str:
        """Returns the similarity with its kind, as in "like b.jpg (cosine 0.83, length held fixed)"."""
        value = score + (self.threshold or 0.0)
        words = {
            "dot": f"cosine {value:.2f}, length held fixed",
            "cosine": f"cosine {value:.2f}",
            "distance": f"distance {-value:.2f}",
        }[self.kind]
        if self.threshold is None:
            return f"{label} ({words})"
        limit = abs(self.threshold) if self.kind == "distance" else self.threshold
        return f"{label} ({words}, {'the same' if score >= 0 else 'another'} by the threshold {limit:g})"


def embeddings_of(output: Tensor) -> Tensor:
    """Returns embeddings (N, D). KonkyoError: an output of another shape."""
    flat = output.flatten(1) if output.ndim > 2 and output.shape[2:].numel() == 1 else output
    if flat.ndim == 2:
        return flat
    raise KonkyoError(
        f"an embedding is (N, D); the output has shape {tuple(output.shape)}. Say how it becomes one: "
        "konkyo.Model(module, select=lambda output: ...), as output[:, 0] of tokens (the class token), output.mean(1), "
        "or output.mean((2, 3)) of a feature map"
    )


def _embeddings(reference: Any) -> Tensor | None:
    """Returns the embeddings (M, D) that a reference is, as numbers; None where it is of images."""
    if isinstance(reference, Sequence) and not isinstance(reference, (str, bytes)) and len(reference):
        if all(isinstance(number, (int, float)) for number in reference):
            return torch.tensor([[float(number) for number in reference]], dtype=torch.float64)
        parts = [_embeddings(entry) for entry in reference]
        if all(part is not None for part in parts):
            return torch.cat(cast("list[Tensor]", parts))
    if isinstance(reference, Tensor) and reference.is_floating_point() and reference.ndim in (1, 2):
        return reference.detach().cpu().double().view(-1, reference.shape[-1])
    kind = getattr(reference, "dtype", None)
    if not isinstance(reference, Tensor) and getattr(kind, "kind", "") == "f" and reference.ndim in (1, 2):
        return torch.as_tensor(reference).double().view(-1, reference.shape[-1])  # an array
    return None


def _name_of(reference: Any) -> str:
    """Returns what a reference is called: its file's name, or "" where it has none."""
    if isinstance(reference, (str, os.PathLike)):
        return Path(reference).name
    if isinstance(reference, (list, tuple)):
        return f"{len(reference)} references"
    return Path(str(getattr(reference, "filename", ""))).name


@spec("like:FILE[,kind=dot|cosine|distance][,threshold=NUMBER]")
def _like(value: str) -> Similarity:
    file, settings = with_settings(value, "kind", "threshold")
    threshold = number_of(settings["threshold"], "threshold") if "threshold" in settings else None
    return Similarity(file, settings.get("kind", "dot"), threshold)  # type: ignore[arg-type]  # it is checked there
