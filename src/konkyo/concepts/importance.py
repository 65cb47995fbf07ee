"""What every concept counts for a score: Sobol' total indices of the concepts' amounts, as in CRAFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from konkyo.concepts.features import passes, targets_of
from konkyo.engine.probe import Probe
from konkyo.engine.session import untouched
from konkyo.utils.sobol import sobol_designs, total_indices

if TYPE_CHECKING:
    from konkyo.concepts.factorisation import Concepts


@dataclass(frozen=True, eq=False)
class Importance:
    """The importance of a concept is the share of a score's variance in which it takes part (Sobol' total index).

    CRAFT (Fel et al., 2023): the amounts of all concepts in an image are multiplied by masks in [0, 1], the features
    are built of what is left, and the rest of the network scores them. A concept that the score ignores has exactly 0.
    Shares of concepts that act together add up to more than 1.
    """

    values: Tensor
    """(r,) the mean over the images."""
    of_images: Tensor
    """(N, r)"""
    scores: Tensor
    """(N,) the explained score of every image."""
    decoded: Tensor
    """(N,) that of the features as the concepts stand for them. Far off: the concepts leave out what counts."""
    targets: tuple[str, ...]
    """(N,) what was explained of every image."""

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        order = self.values.argsort(descending=True).tolist()
        parts = [f"concept {j + 1}: {float(self.values[j]):.2f}" for j in order[:4]]
        more = ", ..." if len(order) > len(parts) else ""
        kinds = list(dict.fromkeys(self.targets))
        of = kinds[0] if len(kinds) == 1 else f"{len(kinds)} targets"
        return f"Importance for {of} over {len(self.scores)} images: {', '.join(parts)}{more}"


def importance_of(concepts: Concepts, target: Any, *, designs: int, seed: int) -> Importance:
    """Computes `Concepts.importance`. KonkyoError: several targets of an image."""
    model, count = concepts.model, len(concepts)
    points = torch.cat([torch.ones(1, count), sobol_designs(designs, count, seed)]).to(concepts.maps)
    grid = tuple(concepts.maps.shape[2:])
    offset = concepts.offset.view(1, -1, *[1] * len(grid))
    session = untouched(model.module, seed)
    scores, all_scores, names = list[Tensor](), list[Tensor](), list[str]()
    with session, session:
        for made in passes(model, concepts.images, concepts._layer, concepts._settings["batch"]):
            targets, labels = targets_of(model, made, target, len(names))
            maps = concepts.maps[len(names) : len(names) + len(targets)]

            def vary(row: int, k: Tensor, maps: Tensor = maps) -> Tensor:
                amounts = maps[row][None] * points[k].view(-1, count, *[1] * len(grid))
                return torch.einsum("vr...,rc->vc...", amounts, concepts.directions) + offset

            probe = Probe(made, targets, concepts._layer, seed=seed, knows_target=False)
            all_scores.append(probe.rescore(len(points), activations=vary).cpu())
            scores.append(probe.score.cpu())
            names += labels
    of_points = torch.cat(all_scores)
    of_images = total_indices(of_points[:, 1:], count).float()
    return Importance(of_images.mean(0), of_images, torch.cat(scores), of_points[:, 0], tuple(names))
