"""What a detector's student gains from its teacher's maps: ODAM's, IG-ODAM's, those of other detections, or none.

    python benchmarks/distil_detector_maps.py --out FOLDER --pilot         # weights, on a seed and scenes of its own
    python benchmarks/distil_detector_maps.py --out FOLDER [--seeds 1,2,3] [--weights odam=3,ig_odam=3,outputs=3]
    python benchmarks/distil_detector_maps.py --out FOLDER --report        # Markdown of what the folder holds
    python benchmarks/distil_detector_maps.py --out FOLDER --sheet PICTURE # maps of the first seed's students

The teacher is `konkyo/scenes-detr`; the student is its copy without most weights of the backbone's convolutions, which
is trained again with few labelled scenes. All arms of a seed begin with the same weights and meet the same batches;
seeds differ in their scenes and in the order of these. The teacher's maps are made once for a set of scenes and kept.
A run is a JSON file (and its maps on the unseen scenes), so that an interrupted experiment goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.ops import box_convert, box_iou

import konkyo
from konkyo.data import Scenes
from konkyo.data.sets.scenes import CLASSES, Scene
from konkyo.errors import KonkyoError, unknown
from konkyo.metrics.distances import blank
from konkyo.models import Model, as_model
from konkyo.targets.candidates import pack
from konkyo.training import InstanceMaps, instance_distillation, map_distillation, outside_energy
from konkyo.utils.files import replacing, write_text
from konkyo.utils.statistics import Estimate

SIZE = 128
OBJECTS = (1, 3)
BATCH, RATE, CLIP = 8, 5e-4, 1.0
CHUNK = 20  # unseen scenes in a forward
PILOT_SEED, UNSEEN, VALIDATION = 0, 9_001, 9_002  # seeds of scenes; training scenes are of 10_000 + seed
REFERENCES = ("teacher", "pruned")
"""What is measured without training."""
ARMS = ("none", "odam", "ig_odam", "others", "outputs")
NAMES = {
    "teacher": "(the teacher itself)",
    "pruned": "(the student before training)",
    "none": "its own loss alone",
    "odam": "+ teacher's ODAM maps",
    "ig_odam": "+ teacher's IG-ODAM maps",
    "others": "+ IG-ODAM maps of other detections",
    "outputs": "+ teacher's boxes and probabilities",
}
COLUMNS = {
    "ap": "AP 50:95",
    "ap50": "AP 50",
    "probability": "probability",
    "to_odam": "1 - r to ODAM",
    "to_ig_odam": "1 - r to IG-ODAM",
    "in_box": "in box",
    "in_mask": "in mask",
    "blank": "blank, %",
}
PAIRS = (
    ("odam", "none"),
    ("ig_odam", "none"),
    ("ig_odam", "odam"),
    ("ig_odam", "others"),
    ("others", "none"),
    ("outputs", "none"),
)


@dataclass(frozen=True)
class Settings:
    """The settings are what all runs of a folder share."""

    scenes: int = 32
    """With labels, for training, of every seed."""
    unseen: int = 200
    steps: int = 30
    pruned: float = 0.7
    """The share of the weights of the backbone's convolutions that the student lacks."""
    nodes: int = 16
    """Of IG-ODAM's path."""


# --- scenes and the teacher's maps ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Part:
    """A part is some scenes with what the teacher found there: maps of both methods, row by row of one detection."""

    scenes: list[Scene]
    images: Tensor
    """(N, 3, 128, 128) in [0, 1]"""
    odam: konkyo.Explanation
    ig_odam: konkyo.Explanation


def part_of(teacher: Model, count: int, seed: int, settings: Settings, folder: Path) -> Part:
    """Draws scenes and reads the teacher's maps of them, which are made once."""
    scenes = list(Scenes(count, seed=seed, objects=OBJECTS))
    prepare = konkyo.Preprocess((SIZE, SIZE), None, (0.0,) * 3, (1.0,) * 3)
    images = torch.stack([prepare(scene.image) for scene in scenes])

    def maps(method: str, **options: Any) -> konkyo.Explanation:
        path = folder / f"teacher-{seed}-{count}-{'-'.join([method, *map(str, options.values())])}.safetensors"
        if not path.exists():
            start = time.process_time()
            result = konkyo.explain(teacher, images, method=method, target=konkyo.Detections(), **options)
            with replacing(path) as new:
                result.save(new)
            seconds = time.process_time() - start
            write_text(path.with_suffix(".json"), json.dumps({"maps": len(result.maps), "cpu_seconds": seconds}))
        return konkyo.Explanation.load(path)

    return Part(scenes, images, maps("odam"), maps("ig_odam", nodes=settings.nodes))


def maps_of(arm: str, part: Part) -> Tensor:
    """The maps (R, h, w) that an arm is taught. "others": those of detections in another image, by a fixed roll."""
    if arm == "odam":
        return part.odam.maps
    if arm == "ig_odam":
        return part.ig_odam.maps
    most = int(part.ig_odam.image_index.bincount().max())  # rows are ordered by image, so that many rows on is another
    return part.ig_odam.maps.roll(most, 0)


def truth(scene: Scene) -> dict[str, Tensor]:
    """A scene's objects as the detector's own loss takes them."""
    return {"class_labels": scene.labels, "boxes": box_convert(scene.boxes / SIZE, "xyxy", "cxcywh")}


# --- the student ------------------------------------------------------------------------------------------------------


def pruned(teacher: Model, share: float) -> Model:
    """A copy without the smallest `share` of all weights of the backbone's convolutions; they stay away."""
    network = copy.deepcopy(teacher.module)
    convolutions = [m for m in network.get_submodule("model.backbone").modules() if isinstance(m, nn.Conv2d)]
    prune.global_unstructured([(m, "weight") for m in convolutions], prune.L1Unstructured, amount=share)
    return as_model(network)


def candidates(output: Any) -> Tensor:
    """What the network put out as konkyo sees it: boxes in pixels and class probabilities, (N, Q, 4 + K)."""
    return pack(SIZE * box_convert(output.pred_boxes, "cxcywh", "xyxy"), output.logits.sigmoid())


def trained(student: Model, part: Part, arm: str, weight: float, settings: Settings, seed: int) -> dict[str, float]:
    """Trains in eval mode, so that the statistics of the batch norms stay. -> first and last loss, CPU seconds"""
    order, start = torch.Generator().manual_seed(seed), time.process_time()
    maps = InstanceMaps(student, (3, SIZE, SIZE), mode="detached") if arm in ("odam", "ig_odam", "others") else None
    aims, rows_of = maps_of(arm, part), part.odam.image_index.tolist()
    optimiser = torch.optim.AdamW([p for p in student.module.parameters() if p.requires_grad], RATE)
    losses, taught = list[float](), list[float]()
    for _ in range(settings.steps):
        batch = torch.randperm(len(part.scenes), generator=order)[:BATCH].tolist()
        output = student.module(pixel_values=part.images[batch], labels=[truth(part.scenes[i]) for i in batch])
        loss = output.loss
        losses.append(float(loss.detach()))
        rows = [r for r, image in enumerate(rows_of) if image in batch]
        targets, at = [part.odam.targets[r] for r in rows], [batch.index(rows_of[r]) for r in rows]
        if arm != "none":
            if maps is not None:
                further = map_distillation(maps(candidates(output), targets, at), aims[rows], distance="pearson").loss
            else:
                further = instance_distillation(candidates(output), targets, at, (SIZE, SIZE))
            taught.append(float(further.detach()))
            loss = loss + weight * further
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.module.parameters(), CLIP)
        optimiser.step()
    if maps is not None:
        maps.close()
    ends = {"first_loss": losses[0], "last_loss": losses[-1]}
    ends |= {"first_taught": taught[0], "last_taught": taught[-1]} if taught else {}
    return ends | {"cpu_seconds": time.process_time() - start}


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(student: Model, part: Part) -> tuple[dict[str, float], Tensor]:
    """The columns on unseen scenes, and the student's ODAM maps of the teacher's detections (R, h, w)."""
    maps = InstanceMaps(student, (3, SIZE, SIZE), mode="detached")
    own, said, output = list[Tensor](), list[float](), list[Tensor]()
    rows_of, targets = part.odam.image_index.tolist(), part.odam.targets
    for first in range(0, len(part.images), CHUNK):
        found = candidates(student.module(pixel_values=part.images[first : first + CHUNK]))
        rows = [r for r, image in enumerate(rows_of) if first <= image < first + len(found)]
        at = [rows_of[r] - first for r in rows]
        own.append(maps(found, [targets[r] for r in rows], at).detach())
        found = found.detach()
        said += [float(targets[r](found[i : i + 1])) for r, i in zip(rows, at, strict=True)]
        output.append(found)
    maps.close()
    of_students = torch.cat(own)
    mute = blank(of_students)
    columns = precision(torch.cat(output), part.scenes)
    columns["probability"] = sum(said) / len(said)
    for name, taught in (("to_odam", part.odam), ("to_ig_odam", part.ig_odam)):
        columns[name] = float(map_distillation(of_students, taught.maps, distance="pearson").loss)
    boxes, masks = places(part)
    columns["in_box"] = 1 - float(outside_energy(of_students, boxes))
    columns["in_mask"] = 1 - float(outside_energy(of_students, masks))
    columns["blank"] = 100 * float(mute.float().mean())
    return columns, of_students


def precision(output: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """COCO's average precision in per cent, of each image's best pairs of candidate and class, as RT-DETR puts out."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
    for found, scene in zip(output, scenes, strict=True):
        scores, best = found[:, 4:].flatten().topk(len(found))
        classes = found.shape[1] - 4
        said = {"boxes": found[best // classes, :4], "scores": scores, "labels": best % classes}
        metric.update([said], [{"boxes": scene.boxes, "labels": scene.labels}])
    values = metric.compute()
    return {"ap": 100 * float(values["map"]), "ap50": 100 * float(values["map_50"])}


def places(part: Part) -> tuple[Tensor, Tensor]:
    """The teacher's boxes, and the masks of their objects, empty where a detection is of none. (R, H, W) bool both"""
    assert part.odam.boxes is not None
    left, top, right, bottom = part.odam.boxes.T[..., None, None]
    x, y = torch.arange(SIZE) + 0.5, torch.arange(SIZE)[:, None] + 0.5
    masks = torch.zeros(len(part.odam.maps), SIZE, SIZE, dtype=torch.bool)
    for row, image in enumerate(part.odam.image_index.tolist()):
        scene, target = part.scenes[image], part.odam.targets[row]
        overlap = box_iou(part.odam.boxes[row : row + 1], scene.boxes)[0] * (scene.labels == target.label)
        if overlap.max() >= 0.5:
            masks[row] = scene.masks[overlap.argmax()]
    return (x > left) & (x < right) & (y > top) & (y < bottom), masks


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run is one student."""

    arm: str
    weight: float
    seed: int
    unseen: int
    """The seed of the scenes that measure."""

    @property
    def name(self) -> str:
        return f"run-{self.unseen}-seed{self.seed}-{self.arm}-{self.weight:g}"


def settled(folder: Path, settings: Settings) -> None:
    """Notes the folder's settings. KonkyoError: the folder's runs have other ones."""
    path, now = folder / "settings.json", asdict(settings)
    if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))) != now:
        raise KonkyoError(f"{folder} holds runs with {before}; got {now}. Another folder, or these settings, go on")
    write_text(path, json.dumps(now))


def go(run: Run, teacher: Model, unseen: Part, settings: Settings, folder: Path) -> dict[str, float]:
    """Trains and measures a student, or reads what it was measured as."""
    path = folder / f"{run.name}.json"
    if not path.exists():
        student, training = teacher if run.arm == "teacher" else pruned(teacher, settings.pruned), dict[str, float]()
        if run.arm not in REFERENCES:
            part = part_of(teacher, settings.scenes, 10_000 + run.seed, settings, folder)
            training = trained(student, part, run.arm, run.weight, settings, run.seed)
        columns, maps = measured(student, unseen)
        with replacing(path.with_suffix(".safetensors")) as new:
            save_file({"maps": maps.contiguous()}, new)
        write_text(path, json.dumps({**asdict(run), **columns, "training": training}))
        print(run.name, {k: round(v, 3) for k, v in columns.items()}, flush=True)
    result: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return result


def pilot(teacher: Model, settings: Settings, folder: Path, grid: Sequence[float]) -> None:
    """Prints what each arm with a weight reaches on validation scenes, on a seed that no table has."""
    unseen = part_of(teacher, settings.unseen // 4, VALIDATION, settings, folder)
    runs = [("none", 0.0), *((arm, w) for w in grid for arm in ("odam", "ig_odam", "outputs"))]
    for arm, weight in runs:
        go(Run(arm, weight, PILOT_SEED, VALIDATION), teacher, unseen, settings, folder)
    print(report(folder, VALIDATION))


def experiment(
    teacher: Model, settings: Settings, folder: Path, seeds: Sequence[int], weights: Mapping[str, float]
) -> None:
    """Runs every arm of every seed, seed by seed, and measures what was not trained."""
    unseen = part_of(teacher, settings.unseen, UNSEEN, settings, folder)
    for seed in seeds:
        for arm in ARMS:
            go(Run(arm, weights[arm], seed, UNSEEN), teacher, unseen, settings, folder)
    for arm in REFERENCES:
        go(Run(arm, 0.0, 0, UNSEEN), teacher, unseen, settings, folder)


# --- the report -------------------------------------------------------------------------------------------------------


def report(folder: Path, unseen: int = UNSEEN) -> str:
    """The Markdown tables of a folder: means and deviations of arms, and paired differences with their intervals."""
    of = {(run.arm, run.weight, run.seed): values for run, values in runs_of(folder, unseen)}
    if not of:
        raise KonkyoError(f"{folder} holds no runs on the scenes of seed {unseen}")
    students = sorted({key[:2] for key in of}, key=lambda key: (list(NAMES).index(key[0]), key[1]))
    lines = [f"| student | weight | seeds | {' | '.join(COLUMNS.values())} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for arm, weight in students:
        mine = [values for key, values in of.items() if key[:2] == (arm, weight)]
        estimates = [Estimate.of(values[column] for values in mine) for column in COLUMNS]
        cells = [f"{e.mean:.3f}" + (f" ± {e.sd:.3f}" if e.n > 1 else "") for e in estimates]
        lines.append(f"| {NAMES[arm]} | {weight:g} | {len(mine)} | {' | '.join(cells)} |")
    lines += ["", f"| difference | seeds | {' | '.join(COLUMNS.values())} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for one, other in PAIRS:
        pairs = [(a, b) for a in students for b in students if (a[0], b[0]) == (one, other)]
        for a, b in [pair for pair in pairs if {one, other} != {"ig_odam", "others"} or pair[0][1] == pair[1][1]]:
            seeds = sorted(key[2] for key in of if key[:2] == a and (*b, key[2]) in of)
            estimates = [Estimate.of(of[(*a, s)][column] - of[(*b, s)][column] for s in seeds) for column in COLUMNS]
            cells = [f"{e.mean:+.3f}" + (f" [{e.low:+.3f}, {e.high:+.3f}]" if e.n > 1 else "") for e in estimates]
            lines.append(f"| {one} {a[1]:g} - {other} {b[1]:g} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *costs(folder, of)])


def runs_of(folder: Path, unseen: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Yields the finished runs on these scenes with what they were measured as."""
    for path in sorted(folder.glob(f"run-{unseen}-*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        yield Run(values["arm"], values["weight"], values["seed"], values["unseen"]), values


def costs(folder: Path, of: Mapping[tuple[str, float, int], dict[str, Any]]) -> Iterator[str]:
    """Yields what training costs beside the student's own loss, in CPU time, and what the teacher's maps cost."""
    alone = {seed: values["training"]["cpu_seconds"] for (arm, _, seed), values in of.items() if arm == "none"}
    for arm in ARMS[1:]:
        ratios = [
            values["training"]["cpu_seconds"] / alone[seed]
            for (name, _, seed), values in of.items()
            if name == arm and seed in alone
        ]
        if ratios:
            yield f"- {NAMES[arm]}: {sum(ratios) / len(ratios):.2f} of the CPU time of the loss alone"
    for path in sorted(folder.glob("teacher-*.json")):
        said = json.loads(path.read_text(encoding="utf-8"))
        yield f"- {path.stem}: {said['maps']} maps in {said['cpu_seconds']:.1f} s of CPU time"


def sheet(folder: Path, settings: Settings, seed: int, count: int, to: Path) -> None:
    """Draws maps of the first detections on unseen scenes: the teacher's, and those of a seed's students."""
    from konkyo.draw.sheets import Cell, Row, contact_sheet

    part = part_of(konkyo.load("konkyo/scenes-detr"), settings.unseen, UNSEEN, settings, folder)
    columns = {"teacher: ODAM": part.odam.maps, f"teacher: IG-ODAM, {settings.nodes}": part.ig_odam.maps}
    for run, _ in sorted(runs_of(folder, UNSEEN), key=lambda pair: list(NAMES).index(pair[0].arm)):
        if run.seed == seed:
            maps = load_file(folder / f"{run.name}.safetensors")["maps"]
            columns[f"student: {NAMES[run.arm]}"] = maps
    assert part.odam.boxes is not None
    rows = []
    for r in range(min(count, len(part.odam.maps))):
        image, cells = int(part.odam.image_index[r]), [Cell(maps[r]) for maps in columns.values()]
        label = CLASSES[part.odam.targets[r].label]
        rows.append(Row(part.scenes[image].image, f"scene {image}", label, cells, part.odam.boxes[r].tolist()))
    with replacing(to) as new:
        contact_sheet(rows, list(columns)).save(new)


def weights_of(text: str) -> dict[str, float]:
    """Reads ARM=WEIGHT,...; "others" has IG-ODAM's weight. KonkyoError: an arm that there is not."""
    weights = {"none": 0.0, "odam": 5.0, "ig_odam": 5.0, "outputs": 1.0}
    for entry in filter(None, text.split(",")):
        arm, _, weight = entry.partition("=")
        if arm not in weights or arm == "none":
            raise unknown("arm with a weight", arm, [name for name in weights if name != "none"])
        weights[arm] = float(weight)
    return weights | {"others": weights["ig_odam"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the pilot or the experiment, or prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pilot", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--sheet", type=Path, help="draws maps of the first seed's students into this picture")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--weights", default="")
    parser.add_argument("--grid", default="3,15", help="weights of the pilot")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    options = parser.parse_args(arguments)
    if options.report:
        print(report(options.out))
        return
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    if options.sheet:
        sheet(options.out, settings, int(options.seeds.split(",")[0]), 4, options.sheet)
        return
    settled(options.out, settings)
    teacher = konkyo.load("konkyo/scenes-detr")
    if options.pilot:
        pilot(teacher, settings, options.out, [float(w) for w in options.grid.split(",")])
        return
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if PILOT_SEED in seeds:
        raise KonkyoError(f"seed {PILOT_SEED} is the pilot's, on which weights are chosen; others were expected")
    experiment(teacher, settings, options.out, seeds, weights_of(options.weights))
    print(report(options.out))


if __name__ == "__main__":
    main()
