"""How much of a segmenter's evidence lies where it must: of a class, of its lead, and of the contrast with its twin.

    python benchmarks/segmentation_contrast.py [SCENES]

Scenes with one object each, `konkyo/scenes-segmenter`. Twins share the body, so that "why cat and not rabbit" can only
be told from the ears. Per method and target: the share of the map in the evidence and in the object, and how often its
highest place lies in the evidence.
"""

from __future__ import annotations

import sys
import warnings

import torch

import konkyo
from konkyo.data.sets.scenes import CLASSES, Scenes

METHODS = ("grad_cam", "layer_cam", "hires_cam")


def main() -> None:
    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
    model = konkyo.load("konkyo/scenes-segmenter")
    rows: dict[tuple[str, str], list[list[float]]] = {}
    for scene in Scenes(int((sys.argv[1:] or ["60"])[0]), seed=9_000, objects=1):
        label = int(scene.labels[0])
        name, twin = CLASSES[label], CLASSES[label ^ 1]
        targets = {
            "class": name,
            "lead": konkyo.Region(name, score="margin"),
            "not its twin": konkyo.ContrastTarget(name, twin),
        }
        for method, result in konkyo.compare(
            model, scene.image, METHODS, target=konkyo.Each(*targets.values())
        ).items():
            for kind, map_ in zip(targets, result.unit((scene.image.height, scene.image.width)), strict=True):
                shares = [float((map_ * region[0]).sum() / map_.sum()) for region in (scene.evidence, scene.masks)]
                highest = float(scene.evidence[0].flatten()[int(map_.flatten().argmax())])
                rows.setdefault((method, kind), []).append([*shares, highest])
    print("| method | target | share in the evidence | share in the object | highest place in the evidence |")
    print("|---|---|---|---|---|")
    for (method, kind), values in rows.items():
        evidence, objects, highest = torch.tensor(values).mean(0).tolist()
        print(f"| `{method}` | {kind} | {evidence:.2f} | {objects:.2f} | {highest:.2f} |")


if __name__ == "__main__":
    main()
