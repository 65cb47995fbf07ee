"""A pruned detector is trained again, with and without the ODAM maps of what it was.

The teacher is `konkyo/scenes-detr`; the student is its copy without most weights of the backbone's convolutions. Both
students get the same few steps with the detector's own loss; one also learns the teacher's ODAM maps of the teacher's
detections, which are found among its own candidates by likeness. Prints, of the teacher's detections on unseen scenes,
the probability that the student gives them, the distance of its maps, and the share of these in the box.

    python examples/distil_detector.py
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.ops import box_convert

import konkyo
from konkyo.data import Scenes
from konkyo.data.sets.scenes import Scene
from konkyo.models import Model, as_model
from konkyo.targets.candidates import pack
from konkyo.training import InstanceMaps, map_distillation, outside_energy

SIZE = 128


def pruned(teacher: Model, share: float) -> Model:
    """A copy without the smallest `share` of all weights of the backbone's convolutions; they stay away."""
    network = copy.deepcopy(teacher.module)
    convolutions = [m for m in network.get_submodule("model.backbone").modules() if isinstance(m, nn.Conv2d)]
    prune.global_unstructured([(m, "weight") for m in convolutions], prune.L1Unstructured, amount=share)
    return as_model(network)


def pixels(scenes: list[Scene]) -> Tensor:
    """The images as the detector takes them: (N, 3, 128, 128) in [0, 1]."""
    prepare = konkyo.Preprocess((SIZE, SIZE), None, (0.0,) * 3, (1.0,) * 3)
    return torch.stack([prepare(scene.image) for scene in scenes])


def truth(scene: Scene) -> dict[str, Tensor]:
    """A scene's objects as the detector's own loss takes them."""
    return {"class_labels": scene.labels, "boxes": box_convert(scene.boxes / SIZE, "xyxy", "cxcywh")}


def candidates(output: object) -> Tensor:
    """What the network put out as konkyo sees it: boxes in pixels and class probabilities, (N, Q, 4 + K)."""
    boxes, logits = output.pred_boxes, output.logits  # type: ignore[attr-defined]
    return pack(SIZE * box_convert(boxes, "cxcywh", "xyxy"), logits.sigmoid())


def trained(student: Model, scenes: list[Scene], found: konkyo.Explanation, weight: float, steps: int) -> None:
    """Some steps with the detector's loss, in eval mode, so that the statistics of its batch norms stay."""
    images, order = pixels(scenes), torch.Generator().manual_seed(0)
    # The decoder samples at places that it computes (grid_sample), which has no second derivative.
    maps = InstanceMaps(student, (3, SIZE, SIZE), mode="detached")
    optimiser = torch.optim.AdamW([p for p in student.module.parameters() if p.requires_grad], 5e-4)
    for _ in range(steps):
        batch = torch.randperm(len(scenes), generator=order)[:8].tolist()
        output = student.module(pixel_values=images[batch], labels=[truth(scenes[i]) for i in batch])
        loss = output.loss
        if weight:
            rows = [r for r, image in enumerate(found.image_index.tolist()) if image in batch]
            at = [batch.index(int(found.image_index[r])) for r in rows]
            own = maps(candidates(output), [found.targets[r] for r in rows], at)
            loss = loss + weight * map_distillation(own, found.maps[rows], distance="pearson").loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.module.parameters(), 1.0)
        optimiser.step()
    maps.close()


def said(student: Model, scenes: list[Scene], found: konkyo.Explanation) -> str:
    """Of the teacher's detections: their mean probability, the distance of maps, blank ones, energy in the box."""
    images, rows = pixels(scenes), found.image_index.tolist()
    maps = InstanceMaps(student, (3, SIZE, SIZE), mode="detached")
    output = student.module(pixel_values=images)  # with a graph, which ODAM needs
    own = maps(candidates(output), found.targets, rows).detach()
    maps.close()
    found_again = candidates(output).detach()
    scores = [target(found_again[row : row + 1]) for row, target in zip(rows, found.targets, strict=True)]
    distance = map_distillation(own, found.maps, distance="pearson")
    assert found.boxes is not None
    left, top, right, bottom = found.boxes.T[..., None, None]
    x, y = torch.arange(SIZE) + 0.5, torch.arange(SIZE)[:, None] + 0.5
    inside = 1 - outside_energy(own, (x > left) & (x < right) & (y > top) & (y < bottom))
    return (
        f"{float(torch.cat(scores).mean()):>12.3f}{abs(float(distance.loss)):>17.3f}{int(distance.blank_student):>8}"
        f"{float(inside):>16.3f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pruned", type=float, default=0.6)
    parser.add_argument("--weight", type=float, default=5.0)
    options = parser.parse_args(arguments)
    teacher = konkyo.load("konkyo/scenes-detr")
    sets = [list(Scenes(options.images, seed=seed, objects=(1, 3))) for seed in (9_001, 9_002)]
    found, unseen = (konkyo.explain(teacher, pixels(s), method="odam", target=konkyo.Detections()) for s in sets)
    print(
        f"{len(unseen)} detections of the teacher on {options.images} unseen scenes; {options.steps} steps of training"
    )
    print(f"{'student':<36}{'probability':>12}{'1 - correlation':>17}{'blank':>8}{'map in the box':>16}")
    print(f"{'(the teacher itself)':<36}{said(teacher, sets[1], unseen)}")
    student = pruned(teacher, options.pruned)
    print(f"{f'without {options.pruned:.0%} of the weights':<36}{said(student, sets[1], unseen)}")
    for name, weight in (("trained again", 0.0), ("trained again, + teacher's maps", options.weight)):
        student = pruned(teacher, options.pruned)
        trained(student, sets[0], found, weight, options.steps)
        print(f"{name:<36}{said(student, sets[1], unseen)}", flush=True)


if __name__ == "__main__":
    main()
