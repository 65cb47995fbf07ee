"""Maps as teachers: losses that draw a student's maps, of classes or of detections, to those of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from konkyo.engine.capture import Watch, untouched
from konkyo.engine.forward import Pass, of_rows, pick, rounds, scores
from konkyo.engine.layer import Layer
from konkyo.errors import KonkyoError, unknown
from konkyo.metrics.distances import Distance, blank, distances, on_grid
from konkyo.models import Model, as_model
from konkyo.targets.candidates import Candidates
from konkyo.targets.classes import Target
from konkyo.targets.detections import InstanceTarget
from konkyo.training.losses.consistency import LOSSES
from konkyo.utils.tensors import at_least_float32, min_max, on_finest, overlap, safe_divide

Slope: TypeAlias = Literal["autograd", "detached"]


class Distilled(NamedTuple):
    """The result holds a loss between maps, and how many were compared.

    All are tensors (), so that nothing waits for the device.
    """

    loss: Tensor
    """The mean distance of the maps that were compared; 0 where none was."""
    used: Tensor
    """int64: maps that were compared."""
    blank_student: Tensor
    """int64: maps left out because the student's says nothing. It gets no gradient: a student that blanks its maps
    escapes the loss, and this number tells."""
    blank_teacher: Tensor
    """int64: maps left out because the teacher's says nothing."""


def map_distillation(maps: Tensor, teacher: Tensor, *, distance: Distance = "mse") -> Distilled:
    """Measures how far a student's maps are from a teacher's. (N, h, w), (N, h', w') -> a loss and counts

    `maps` have a graph: `konkyo.training.maps.TrainingMaps` of a classifier, `InstanceMaps` of a detector. `teacher`,
    raw maps of any method, model and grid (`Explanation.maps`), is put on the student's grid as it is. Then both are
    scaled to [0, 1], and `distance` is one of `konkyo.metrics.distances.distances` that have a gradient. The teacher
    gets none. Blank maps, of either, are left out and counted.

        student = TrainingMaps(model, (3, 128, 128))
        loss = cross_entropy(logits, labels) + 3 * map_distillation(student(logits, labels), teacher).loss

    KonkyoError: a distance without a gradient, as many maps as there are not.
    """
    if distance not in LOSSES:
        raise unknown("distance for training", distance, LOSSES)
    if maps.ndim != 3 or teacher.ndim != 3 or len(maps) != len(teacher):
        raise KonkyoError(
            f"a teacher's map for each of the student's, (N, h, w) both, was expected; got {tuple(maps.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    with torch.autocast(maps.device.type, enabled=False):
        maps, aims = at_least_float32(maps), on_grid(teacher.detach().to(maps.device), (maps.shape[1], maps.shape[2]))
        mute, silent = blank(maps), blank(aims)
        rows = (~mute & ~silent).nonzero()[:, 0]
        apart = distances(min_max(maps[rows]), min_max(aims[rows].to(maps)), distance)
    used = (~mute & ~silent).sum()
    return Distilled(apart.sum() / used.clamp_min(1), used, mute.sum(), silent.sum())


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Measures how far two networks attend apart, the mean over images. -> ()

    Activation-based attention transfer (Zagoruyko & Komodakis, 2017, Eq. 2).

    |Q_S / |Q_S| - Q_T / |Q_T||_2 of Q = sum over channels of A^2, for one pair of layers. The paper's factor beta / 2
    and sum over pairs are the caller's. Activations (N, C, h, w) and (N, C', h', w') of a network that may have other
    channels and another grid: Q_T is put on the student's. No class has a part in it. The authors' code takes the mean
    of the squared difference instead. KonkyoError: other shapes.
    """
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise KonkyoError(
            f"activations (N, C, h, w) of the same images were expected; got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    attention, aims = (at_least_float32(grid).square().sum(1) for grid in (student, teacher.detach()))
    aims = on_grid(aims, (attention.shape[1], attention.shape[2])).to(attention)
    attention, aims = (nn.functional.normalize(q.flatten(1), dim=1) for q in (attention, aims))
    distance: Tensor = torch.linalg.vector_norm(attention - aims, dim=1).mean()
    return distance


# --- detections -------------------------------------------------------------------------------------------------------


def odam_maps(
    activations: Tensor | Sequence[Tensor], scores: Tensor, rows: Sequence[int], *, mode: Slope = "autograd"
) -> Tensor:
    """ODAM maps (Zhao & Chan, 2023) of several scores, to be differentiated: ReLU(sum_k G_k A_k). -> (R, h, w)

    `scores` (R,), score r of image `rows[r]`, were computed from `activations` (N, C, h, w), or the levels of a
    pyramid. Levels are enlarged to the finest and added before the ReLU. `mode`: "autograd", G with a graph, or
    "detached", G as a constant: then only A learns. Deformable attention (`grid_sample`, as in RT-DETR's decoder) has
    no second derivative in PyTorch, and the backward of "autograd" raises there. A score that depends on no activation
    has a map of zeros.

    As many gradients are taken as the image with most scores has of them. So images must not depend on each other after
    the activations, as through the statistics of a batch. KonkyoError: not a row per score, an unknown mode,
    activations without a graph.
    """
    levels = [activations] if isinstance(activations, Tensor) else list(activations)
    return _odam([Layer("activations", None)] * len(levels), levels, scores, rows, mode)


def _odam(layers: Sequence[Layer], raws: Sequence[Tensor], scores: Tensor, rows: Sequence[int], mode: Slope) -> Tensor:
    """`odam_maps` of activations in the forms of their modules."""
    if mode not in ("autograd", "detached"):
        raise unknown("mode", mode, ("autograd", "detached"))
    if scores.shape != (len(rows),) or not all(0 <= row < len(raws[0]) for row in rows):
        raise KonkyoError(
            f"a score (R,) for each of R rows, images from 0 to {len(raws[0]) - 1}, was expected; got "
            f"{tuple(scores.shape)} scores and rows {list(rows)}"
        )
    if not all(raw.requires_grad for raw in raws):
        raise KonkyoError(
            "these activations are not part of a graph, so scores have no gradient by them: weights before the layer "
            "must be free to learn, or images.requires_grad_() before the forward"
        )
    at, with_graph = tuple(rows), mode == "autograd"
    slopes = list[list[Tensor]]()
    for column in rounds(at):
        total = scores[column].sum()
        gradients: Sequence[Tensor | None] = [None] * len(raws)
        if total.requires_grad:
            gradients = torch.autograd.grad(total, raws, retain_graph=True, create_graph=with_graph, allow_unused=True)
        slopes.append([torch.zeros_like(a) if g is None else g for a, g in zip(raws, gradients, strict=True)])
    signed = []
    for i, (layer, raw) in enumerate(zip(layers, raws, strict=True)):
        grids = layer.fold(raw)
        weights = of_rows(at, [layer.fold(column[i]) for column in slopes]) if at else grids[:0]
        signed.append((at_least_float32(weights) * at_least_float32(pick(grids, at) if at else grids[:0])).sum(1))
    return on_finest(signed).sum(0).relu()


def instance_distillation(
    output: Tensor, targets: Sequence[InstanceTarget], rows: Sequence[int], size: tuple[int, int]
) -> Tensor:
    """Measures how far a student's candidates are from a teacher's detections, without a map. -> ()

    `output` (N, Q, 4 B + K) are the student's candidates, with a graph; `targets[r]` is a detection of the teacher in
    image `rows[r]`. It is compared with the candidate that is most like it, by the terms and weights of DETR (Carion et
    al., 2020), the teacher's probabilities in place of labels: the binary cross entropies of the class probabilities,
    summed over classes, + 5 times the differences of the four sides of the boxes as shares of `size` (height, width),
    summed, + 2 (1 - GIoU). The result is the mean over detections that some candidate is like; 0 where there is none.
    KonkyoError: not a row per target, no such image.
    """
    if len(targets) != len(rows) or not all(0 <= row < len(output) for row in rows):
        raise KonkyoError(
            f"a row for each of {len(targets)} targets, images from 0 to {len(output) - 1}, was expected; got "
            f"rows {list(rows)}"
        )
    with torch.autocast(output.device.type, enabled=False):
        output, terms = at_least_float32(output), list[Tensor]()
        for target, row in zip(targets, rows, strict=True):
            image = output[row : row + 1]
            match, candidates = target.match(image), Candidates(image, len(target.likeness))
            if not match.found[0]:
                continue
            box, likeness = candidates.boxes(target.label)[0, match.index], candidates.probabilities[0, match.index]
            aim, lengths = box.new_tensor([target.box]), box.new_tensor([size[1], size[0]] * 2)
            naming = nn.functional.binary_cross_entropy(
                likeness, likeness.new_tensor([target.likeness]), reduction="sum"
            )
            sides = ((box - aim).abs() / lengths).sum()
            terms.append(naming + 5 * sides + 2 * (1 - _giou(box, aim)).sum())
        return torch.stack(terms).mean() if terms else 0 * output.sum()


def _giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Computes the generalised IoU (Rezatofighi et al., 2019) of N boxes with as many others. -> (N,)"""
    iou, areas = overlap(boxes, others), [(b[:, 2:] - b[:, :2]).clamp_min(0).prod(1) for b in (boxes, others)]
    hull = (torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])).prod(1)
    return iou - 1 + safe_divide((areas[0] + areas[1]) / (1 + iou), hull)


class InstanceMaps:
    """A detector's ODAM maps in its last forward, to be differentiated, of instances that it is asked for.

    Made once for a detector and the shape (C, H, W) of its images; called after each forward with the candidates that
    came out and with targets, such as a teacher's detections. A `konkyo.InstanceTarget` looks itself up among the
    student's candidates by IoU and likeness of class probabilities.

        found = konkyo.explain(teacher, images, method="odam", target=konkyo.Detections())
        own = InstanceMaps(student, (3, 128, 128))(student(images), found.targets, found.image_index.tolist())
        loss = detection_loss + map_distillation(own, found.maps).loss

    An instance that nothing is like has a blank map. Boxes are in pixels of the network's input: teacher and student
    must take images of one size. `layer` as in `konkyo.explain`, a pyramid too; `mode` as in `odam_maps`. In training
    mode batch statistics tie images together, and maps are approximate; in eval mode they are ODAM's. The hooks stay
    on the network until `close`. KonkyoError: a layer without a grid.
    """

    def __init__(
        self,
        model: Model | nn.Module,
        shape: Sequence[int],
        *,
        layer: str | nn.Module | Layer | None = None,
        mode: Slope = "autograd",
    ) -> None:
        adapted = as_model(model)
        bound = adapted.layer(layer, shape)
        if bound.module is None:
            raise KonkyoError(f"training needs a layer that is a module; {bound.name!r} is the image itself")
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        with untouched(adapted.module):
            self.layers = Pass(adapted, adapted.prepared(noise), [bound]).levels(bound)
        self.mode, self._watch = mode, Watch(adapted.module, bound)

    def __call__(self, output: Tensor, targets: Sequence[Target], rows: Sequence[int]) -> Tensor:
        """Returns (R, h, w), at least fp32: target r's map on image `rows[r]` of the last forward.

        `output` (N, Q, 4 B + K) is what the model, or the caller from what its network returned, made of the batch.
        KonkyoError: not a row per target; no forward with gradients.
        """
        _, raws = self._watch.take()
        if len(targets) != len(rows) or len(output) != len(raws[0]):
            raise KonkyoError(
                f"a row per target and candidates of the last forward's {len(raws[0])} images were expected; got "
                f"{len(targets)} targets, {len(rows)} rows and candidates of {len(output)} images"
            )
        with torch.autocast(output.device.type, enabled=False):
            row_scores = (
                scores(pick(at_least_float32(output), tuple(rows)), targets) if len(rows) else output.new_zeros(0)
            )
            return _odam(self.layers, raws, row_scores, rows, self.mode)

    def close(self) -> None:
        """Takes the hooks off the network."""
        self._watch.close()
