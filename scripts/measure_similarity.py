"""Measures where the evidence for the likeness of two scenes lies that share one object: in docs/embeddings.md.

python scripts/measure_similarity.py [PAIRS]
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict

import torch
from torch import nn

import konkyo
from konkyo.data.sets.scenes import Scenes

SCENES, SEED = 160, 11
ROWS = [
    *((method, kind) for kind in ("dot", "cosine", "distance") for method in ("hires_cam", "grad_cam", "layer_cam")),
    *((method, "cosine") for method in ("eigen_cam", "occlusion", "sbsm")),
]


def main(most: int) -> None:
    """A line per method and kind: the share of the positive evidence on the shared object, and on the other one."""
    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
    classifier = konkyo.load("konkyo/scenes-classifier")
    classifier.module.head = nn.Identity()
    model = konkyo.Model(classifier.module, classifier.preprocess)
    samples = Scenes(SCENES, seed=SEED, objects=2)
    scenes = [samples[index] for index in range(SCENES)]
    shares = defaultdict(list)
    for one, other in pairs([frozenset(scene.labels.tolist()) for scene in scenes])[:most]:
        first, second = scenes[one], scenes[other]
        (common,) = set(first.labels.tolist()) & set(second.labels.tolist())
        place = first.labels.tolist().index(common)
        shared = first.masks[place].bool()
        rest = first.masks[1 - place].bool() & ~shared
        for method, kind in ROWS:
            options = {"window": 24} if method in ("occlusion", "sbsm") else {}
            target = konkyo.Similarity(second.image, kind)
            result = konkyo.explain(model, first.image, method=method, target=target, **options)
            map_ = result.at(shared.shape)[0].relu()
            shares[method, kind].append([float(map_[part].sum() / map_.sum()) for part in (shared, rest)])
    for (method, kind), values in shares.items():
        on_shared, on_rest = torch.tensor(values).nanmean(0).tolist()
        print(f"{method:12} {kind:9} {len(values)} pairs: shared {on_shared:.3f}, the other {on_rest:.3f}")


def pairs(classes: list[frozenset[int]]) -> list[tuple[int, int]]:
    """Returns pairs of scenes with two classes each, of which they share one; no scene is in two pairs."""
    found: list[tuple[int, int]] = []
    for i, one in enumerate(classes):
        for j in range(i + 1, len(classes)):
            apart = not any(index in pair for pair in found for index in (i, j))
            if apart and len(one) == len(classes[j]) == 2 and len(one & classes[j]) == 1:
                found.append((i, j))
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
