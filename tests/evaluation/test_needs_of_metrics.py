"""What `evaluate` gives metrics that ask for more than a score: decisions, outputs, all boxes, segments, baselines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import konkyo
from helpers.evaluation_inputs import SIZE, Colours, block, colours, equal, pictures, thing
from konkyo.evaluation.evaluate import evaluate
from konkyo.metrics import METRICS


def test_decisions_and_outputs_of_variants_are_the_networks() -> None:
    model, samples = colours(), pictures(2)
    names = ["road_accuracy(steps=2)", "relative_stability(kind=output,samples=2,radius=0.5)"]
    found = evaluate(model, samples, ["grad_cam"], names, seed=3)
    network = Colours().eval()
    given: dict[str, Any] = {
        "outputs": lambda v, rows: network(v).detach(),
        "decided": lambda v, rows: network(v).argmax(1) == 0,  # both are decided to be a fox
        "explain": lambda v, rows: konkyo.explain(model, v, target=0).maps,
    }
    for i, sample in enumerate(samples):
        given["images"] = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)[None] / 255
        maps = konkyo.explain(model, sample.image, target=0).maps
        road = METRICS["road_accuracy"].statistic(maps, **given, steps=2, seed=3 + i)
        equal(found.statistics["grad_cam", "road_accuracy(steps=2)"][i : i + 1], road)
        options = {"kind": "output", "samples": 2, "radius": 0.5, "seed": 3 + i}
        equal(found.values("grad_cam", names[1])[i : i + 1], METRICS["relative_stability"](maps, **given, **options))


def test_every_box_and_crowds_reach_the_metrics_of_boxes_and_pixels() -> None:
    (sample,) = pictures(1)
    fox, leaf = sample.annotations
    second, crowd = thing("red fox", (24, 2, 36, 12)), replace(thing("red fox", (0, 24, 20, 32)), crowd=True)
    sample = replace(sample, annotations=(fox, leaf, second, crowd))
    names = ["max_box_acc(steps=20)", "max_box_acc(steps=20,protocol=wsol)", "px_ap(steps=20)"]
    found = evaluate(colours(), [sample], ["grad_cam"], names)
    maps = konkyo.explain(colours(), sample.image, target=0).at(SIZE)
    every = torch.tensor([[fox.box, second.box]])
    for name, options in zip(names[:2], ({}, {"protocol": "wsol"}), strict=True):
        value = METRICS["max_box_acc"].statistic(maps, boxes=every[:, 0], all_boxes=every, steps=20, **options)
        equal(found.statistics["grad_cam", name], value)
    ignored = block((0, 24, 20, 32))[None]
    value = METRICS["px_ap"].statistic(maps, masks=(fox.mask | second.mask)[None], ignored=ignored, steps=20)
    equal(found.statistics["grad_cam", "px_ap@mask(steps=20)"], value)
    assert value.sum() < SIZE[0] * SIZE[1]


def test_new_metrics_have_values_in_a_table() -> None:
    names = ["arcc", "irof(segments=grid,count=6)", "roc_auc", "relevance_rank(k=50)", "local_lipschitz(samples=2)"]
    names += ["deletion(patch=8,steps=20)", "deletion(steps=3,substrate=white)", "insertion(steps=3,substrate=0.5)"]
    found = evaluate(colours(), pictures(1), ["grad_cam"], names)
    for column in found.columns:
        values: Tensor = found.values("grad_cam", column.name)
        assert values.isfinite().all(), column.name
