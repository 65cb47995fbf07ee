"""Does a loss on maps take a planted mark out of what a network decides on?

    python benchmarks/spurious.py --work FOLDER [--data lesions,scenes] [--seeds 5,3]
    python benchmarks/spurious.py --work FOLDER --table          the tables in Markdown, from what FOLDER has
    python benchmarks/spurious.py --work FOLDER --sheet FILE     the same test images under all losses
    python benchmarks/spurious.py --cost                         a step of every loss against a plain one

Every class of the training images has a mark of its own (konkyo.data.Cue), which nine of ten of its images bear; the
tenth bears another class's. So marks alone tell nine of ten, and each loss trains the same network on the same images
in the same order. Measured on new images: accuracy with the mark of their class, without any, and with the mark of
another class; the share of the maps on the mark and on the object.

Weights are chosen without a look at that: of a small grid the largest one whose accuracy on validation images marked as
those of training, for a seed that is used for nothing else, is at most five points below cross entropy's. A file per
run in FOLDER, so that an interrupted study goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d

import konkyo
from konkyo.data import Cue, Scenes
from konkyo.data.samples import Samples, samples
from konkyo.draw.overlay import overlay
from konkyo.metrics.localisation import ebpg
from konkyo.training import (
    ConsistencyLoss,
    LambdaSchedule,
    TrainingMaps,
    attention_consistency,
    cdep,
    outside_energy,
    random_views,
    right_reasons,
    saliency_guided,
)
from konkyo.utils.files import read_json, replacing, write_text
from konkyo.utils.statistics import Estimate

GRID: dict[str, tuple[float, ...]] = {
    "gaze consistency": (0.3, 1, 3, 10),
    "right_reasons": (0.1, 1, 10, 100),
    "outside_energy": (0.1, 0.3, 1, 3),
    "cdep": (0.1, 1, 3, 10),
    "saliency_guided": (0.1, 0.3, 1, 3),
    "attention_consistency": (0.01, 0.1, 1, 10),
}
"""The weights that are tried, of the losses that have one."""
ARMS = ("cross entropy", *GRID, "views", "marks drawn", "no marks")
"""The last two are trained on other images: marks of classes drawn at random, and none. "views" is attention
consistency without its loss on maps: cross entropy of the images and of their views."""
CHOICE_SEED, TOLERANCE = 1000, 0.05
BEAR = 0.9
"""The share of the training images that bear the mark of their class; the others bear another's."""
METHODS = ("grad_cam", "saliency")


@dataclass(frozen=True)
class Setting:
    """A setting is a data set of three classes, and the mark of each."""

    name: str
    side: int
    marks: tuple[str, str, str]
    """KIND:CLASS, in the order of the labels."""

    @property
    def cues(self) -> tuple[Cue, ...]:
        """The marks."""
        return tuple(Cue.of(mark, self.classes) for mark in self.marks)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes by number."""
        return tuple(mark.partition(":")[2] for mark in self.marks)

    def data(self, count: int, seed: int) -> Samples:
        """Returns unmarked samples."""
        if self.name == "lesions":
            return samples(f"lesions:{count},places=random,size={self.side}", seed=seed)
        return samples(Scenes(count, seed=50_000 + seed, objects=1, size=self.side, classes=self.classes))


SETTINGS = {
    "lesions": Setting("lesions", 48, ("box:disc", "line:ring", "patch:stripes")),
    "scenes": Setting("scenes", 64, ("box:taxi", "line:sailboat", "patch:tulip")),
}


@dataclass(frozen=True)
class Size:
    """How large the study is."""

    images: int = 300
    test: int = 300
    epochs: int = 12


@dataclass(frozen=True)
class Run:
    """A run is one training."""

    data: str
    arm: str
    weight: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.data}-{self.arm.replace(' ', '_')}-{self.weight:g}-{self.seed}"


@dataclass(frozen=True, eq=False)
class Part:
    """A part holds images with the mark of their class, of another, as in training, of one drawn, and with none."""

    images: dict[str, Tensor]
    """(N, 3, S, S) each, of `KINDS`."""
    labels: Tensor
    marks: dict[str, Tensor]
    """(N, S, S) bool: where the mark is."""
    objects: Tensor
    """(N, S, S) bool."""


KINDS = ("own", "other", "mostly", "drawn", "none")
"""Whose mark an image bears: of its class, of the next class, of its class in `BEAR` of the images and of one of the
others else, of a class drawn at random, none."""


@lru_cache(maxsize=6)
def part(data: str, count: int, seed: int) -> Part:
    """Draws a part of a data set. The mark of an image varies with its number, as it does under the option cue=."""
    setting = SETTINGS[data]
    source, prepare = setting.data(count, seed), preprocess(setting.side)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, (count,), generator=generator).tolist()
    # How far the mark's class is from the image's: 0 in nine of ten.
    shifts = torch.randint(1, 3, (count,), generator=generator)
    shifts = shifts.where(torch.rand(count, generator=generator) >= BEAR, 0).tolist()
    labels, objects, numbers = list[int](), list[Tensor](), [0, 0, 0]
    images: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    marks: dict[str, list[Tensor]] = {kind: [] for kind in images}
    for index in range(count):
        sample = source[index]
        label, mask = setting.classes.index(str(sample.label)), sample.annotations[0].mask
        assert mask is not None
        borne = (label, (label + 1) % 3, (label + shifts[index]) % 3, drawn[index], None)
        for kind, which in zip(KINDS, borne, strict=True):
            cue = None if which is None else setting.cues[which]
            picture = sample.image if cue is None else cue.plant(sample.image, numbers[label])
            images[kind].append(prepare(picture))
            where = torch.zeros_like(mask) if cue is None else cue.mask(sample.image.size, numbers[label])
            marks[kind].append(where)
        labels.append(label)
        objects.append(mask)
        numbers[label] += 1
    stacked = {kind: torch.stack(values) for kind, values in images.items()}
    places = {kind: torch.stack(values) for kind, values in marks.items()}
    return Part(stacked, torch.tensor(labels), places, torch.stack(objects))


def preprocess(side: int) -> konkyo.Preprocess:
    """Returns how pictures become images of the networks; 0 is a middle grey."""
    return konkyo.Preprocess(side, None, (0.4,) * 3, (0.25,) * 3)


def network() -> nn.Sequential:
    """Returns four blocks, the last on a grid of an eighth of the side, its mean, and one linear layer."""
    layers: list[nn.Module] = []
    for inside, outside in ((3, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 3))


Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""The loss of a batch: images, labels, masks of what may matter, epoch."""


def step_of(arm: str, weight: float, net: nn.Module, shape: tuple[int, ...], generator: torch.Generator) -> Step:
    """Returns the loss of an arm."""
    if arm == "gaze consistency":
        gaze, schedule = ConsistencyLoss(net, shape), LambdaSchedule(weight, 2, 6)

        def consistent(images: Tensor, labels: Tensor, _masks: Tensor, epoch: int) -> Tensor:
            logits = net(images)
            return cross_entropy(logits, labels) + schedule(epoch) * gaze(logits, labels)

        return consistent
    maps = TrainingMaps(net, shape) if arm in ("outside_energy", "attention_consistency") else None

    def loss(images: Tensor, labels: Tensor, masks: Tensor, _epoch: int) -> Tensor:
        images = images.clone().requires_grad_(arm == "right_reasons")
        logits = net(images)
        total = cross_entropy(logits, labels)
        if arm == "right_reasons":
            return total + weight * right_reasons(images, logits, masks)
        if arm == "outside_energy":
            assert maps is not None
            return total + weight * outside_energy(maps(logits, labels), masks)
        if arm == "cdep":
            return total + weight * cdep(net, images, masks)
        if arm == "saliency_guided":
            return total + weight * saliency_guided(net, images, labels, logits, generator)
        if arm in ("views", "attention_consistency"):
            first = None if maps is None else maps(logits, labels)
            views = random_views(images, generator)
            seen = net(views.images)
            total = (total + cross_entropy(seen, labels)) / 2
            if maps is not None and first is not None:
                total = total + weight * attention_consistency(first, maps(seen, labels), views)
        return total

    return loss


def train(run: Run, size: Size) -> nn.Module:
    """Trains a network: Adam, cosine. Runs of a seed begin alike and meet the same images in the same order."""
    torch.manual_seed(run.seed)
    data, net = part(run.data, size.images, run.seed), network()
    kind = {"marks drawn": "drawn", "no marks": "none"}.get(run.arm, "mostly")
    images, labels = data.images[kind], data.labels
    wide = images.shape[-1] // 5 // 2 * 2 + 1  # an object is seen against what is around it
    around = max_pool2d(data.objects[:, None].float(), wide, 1, wide // 2)[:, 0] > 0
    masks = around & ~data.marks[kind]
    step = step_of(run.arm, run.weight, net, tuple(images.shape[1:]), torch.Generator().manual_seed(run.seed))
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, size.epochs)
    order = torch.Generator().manual_seed(run.seed)
    for epoch in range(1, size.epochs + 1):
        net.train()
        for rows in torch.randperm(len(images), generator=order).split(32):
            optimiser.zero_grad()
            step(images[rows], labels[rows], masks[rows], epoch).backward()
            optimiser.step()
        slower.step()
    return net.eval()


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the share of images that are named right."""
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).double().mean())


def measured(net: nn.Module, run: Run, size: Size) -> dict[str, float]:
    """Returns what the network does: with training's marks in validation for choosing a weight, else on test images."""
    if run.seed == CHOICE_SEED:
        valid = part(run.data, size.test // 2, 7000)
        return {"validation": accuracy(net, valid.images["mostly"], valid.labels)}
    test = part(run.data, size.test, 9000)
    values = {kind: accuracy(net, test.images[kind], test.labels) for kind in ("own", "none", "other")}
    values["follows"] = accuracy(net, test.images["other"], (test.labels + 1) % 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", konkyo.KonkyoWarning)  # of blank maps, which are left out
        for method in METHODS:
            for kind, masks, name in (("own", test.marks["own"], "mark"), ("none", test.objects, "object")):
                maps = konkyo.explain(net, test.images[kind], target=test.labels, method=method)
                share = ebpg(maps.at((masks.shape[1], masks.shape[2])), masks=masks)
                values[f"{method} on {name}"] = float(share.nanmean())
    return values


def result(run: Run, size: Size, work: Path) -> dict[str, float]:
    """Returns the numbers of a run, from its file where there is one."""
    file = work / f"{run.name}.json"
    if file.is_file():
        stored = read_json(file)
        if stored["size"] != asdict(size):
            raise konkyo.KonkyoError(f"{file} is of a study of another size, {stored['size']}; choose another folder")
        return dict(stored["values"])
    start = time.perf_counter()
    net = train(run, size)
    values = measured(net, run, size)
    if run.seed == 0:
        with replacing(work / f"{run.name}.safetensors") as temporary:
            save_file(net.state_dict(), temporary)
    write_text(file, json.dumps({"run": asdict(run), "size": asdict(size), "values": values}, indent=1) + "\n")
    print(f"{run.name}: {time.perf_counter() - start:.1f} s", flush=True)
    return values


def chosen(data: str, arm: str, size: Size, work: Path) -> float:
    """Returns the weight of an arm, chosen on marked validation images alone."""
    if arm not in GRID:
        return 0.0
    plain = result(Run(data, "cross entropy", 0.0, CHOICE_SEED), size, work)["validation"]
    found = {w: result(Run(data, arm, w, CHOICE_SEED), size, work)["validation"] for w in GRID[arm]}
    return max((w for w, value in found.items() if value >= plain - TOLERANCE), default=GRID[arm][0])


def runs(data: str, seeds: int, size: Size, work: Path) -> Iterator[Run]:
    """Yields the runs of a data set, seed by seed."""
    weights = {arm: chosen(data, arm, size, work) for arm in ARMS}
    for seed in range(seeds):
        yield from (Run(data, arm, weights[arm], seed) for arm in ARMS)


def whole(data: str, seeds: int, size: Size, work: Path) -> int:
    """Returns how many of the first seeds have all their runs in the folder; nothing is trained."""
    choice = [Run(data, "cross entropy", 0.0, CHOICE_SEED)]
    choice += [Run(data, arm, weight, CHOICE_SEED) for arm, weights in GRID.items() for weight in weights]
    if not all((work / f"{run.name}.json").is_file() for run in choice):
        return 0
    files = [(work / f"{run.name}.json").is_file() for run in runs(data, seeds, size, work)]
    return next((seed for seed in range(seeds) if not all(files[seed * len(ARMS) : (seed + 1) * len(ARMS)])), seeds)


# --- what is shown ----------------------------------------------------------------------------------------------------


def table(data: str, seeds: int, size: Size, work: Path) -> str:
    """Returns the tables of a data set in Markdown."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    weights = dict[str, float]()
    for run in runs(data, seeds, size, work):
        found[run.arm].append(result(run, size, work))
        weights[run.arm] = run.weight
    test = part(data, size.test, 9000)
    areas = (100 * float(masks.double().mean()) for masks in (test.marks["own"], test.objects))
    lines = [
        f"{data}: {size.images} training images, {size.test} test images, {size.epochs} epochs, {seeds} paired seeds. "
        + "A map of one value has {:.1f} % on the mark and {:.1f} % on the object.".format(*areas),
        "",
        "| loss | weight | with its mark | no mark | another's mark | follows the mark | Grad-CAM on mark | on object "
        "| saliency on mark | on object |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ("own", "none", "other", "follows", *(f"{m} on {where}" for m in METHODS for where in ("mark", "object")))
    for arm in ARMS:
        cells = (mean_sd([100 * values[key] for values in found[arm]]) for key in keys)
        lines.append(f"| {arm} | {weights[arm]:g} | {' | '.join(cells)} |")
    lines += [
        "",
        "| loss | no mark | another's mark | Grad-CAM on mark | another's mark, against marks drawn | removes it |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ARMS[1:]:
        pairs = [
            paired(found[arm], found[other], key)
            for other, key in (
                ("cross entropy", "none"),
                ("cross entropy", "other"),
                ("cross entropy", "grad_cam on mark"),
                ("marks drawn", "other"),
            )
        ]
        cells = ("{:+.1f} [{:+.1f}, {:+.1f}]".format(p.mean, *ends(p)) for p in pairs)
        lines.append(f"| {arm} | {' | '.join(cells)} | {verdict(pairs[1], pairs[3])} |")
    return "\n".join(lines)


def mean_sd(values: list[float]) -> str:
    """Returns a cell of a table."""
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def paired(of: list[dict[str, float]], to: list[dict[str, float]], key: str) -> Estimate:
    """Returns the mean difference over seeds in points, with its 95 % interval."""
    return Estimate.of(100 * (a[key] - b[key]) for a, b in zip(of, to, strict=True))


def verdict(gain: Estimate, missing: Estimate) -> str:
    """Returns whether the mark is removed, by accuracy under another class's mark.

    yes: above cross entropy, and at most 5 points below a network for which marks told nothing. partly: above cross
    entropy. no: not above, and the interval ends below 10 points. Else it cannot be told.
    """
    low, high = ends(gain)
    if low > 0:
        return "yes" if missing.mean > -5 else "partly"
    return "no" if high < 10 else "cannot be told"


def ends(difference: Estimate) -> tuple[float, float]:
    """Returns the interval; of differences that are all alike, as of two networks that always follow the mark, it is
    their value."""
    return (difference.mean, difference.mean) if difference.sd == 0 else (difference.low, difference.high)


def sheet(data: str, size: Size, work: Path, file: Path) -> None:
    """Draws Grad-CAM of test images under all arms: the label's map, and what the network says."""
    setting, test = SETTINGS[data], part(data, size.test, 9000)
    wanted = list(runs(data, 1, size, work))
    rows = [(kind, int((test.labels == label).nonzero()[1])) for label in range(3) for kind in ("own", "other")]
    side, head, foot, gap = 2 * setting.side, 34, 14, 4
    canvas = Image.new(
        "RGB", ((1 + len(wanted)) * (side + gap), head + len(rows) * (side + foot + gap)), (255, 255, 255)
    )
    pen = ImageDraw.Draw(canvas)
    for column, run in enumerate([None, *wanted]):
        x = column * (side + gap)
        pen.multiline_text((x + 2, 4), "test image" if run is None else run.arm.replace("_", "_\n", 1), (0, 0, 0))
        if run is not None:
            net = network()
            net.load_state_dict(load_file(work / f"{run.name}.safetensors"))
            net.eval()
        for number, (kind, index) in enumerate(rows):
            y, image = head + number * (side + foot + gap), test.images[kind][index : index + 1]
            picture = Image.fromarray(
                ((0.25 * image[0] + 0.4).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            ).resize((side, side), Image.Resampling.NEAREST)
            label = int(test.labels[index])
            said = f"{setting.classes[label]}, {kind} mark"
            if run is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
                    maps = konkyo.explain(net, image, target=label)
                picture = overlay(picture, maps.unit()[0])
                answer = int(net(image).argmax())
                said = setting.classes[answer] if answer == label else f"WRONG: {setting.classes[answer]}"
            canvas.paste(picture.convert("RGB").resize((side, side)), (x, y))
            pen.text((x + 2, y + side + 1), said, (0, 0, 0) if "WRONG" not in said else (190, 0, 0))
    with replacing(file) as temporary:
        canvas.save(temporary, format=file.suffix[1:].upper().replace("JPG", "JPEG"), quality=88)


def cost(steps: int = 15) -> str:
    """Returns the CPU time of a step against a plain one, medians of steps that take turns."""
    data = part("lesions", 32, 0)
    masks, arms = data.objects, ("cross entropy", *GRID, "views")
    nets = {arm: network() for arm in arms}
    losses = {arm: step_of(arm, 1.0, net, (3, 48, 48), torch.Generator()) for arm, net in nets.items()}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(steps + 3):
        for arm in arms:
            nets[arm].train()
            nets[arm].zero_grad()
            start = time.process_time()
            losses[arm](data.images["own"], data.labels, masks, 9).backward()
            times[arm].append(time.process_time() - start)
    plain = statistics.median(times["cross entropy"][3:])
    return "\n".join(f"| {arm} | {statistics.median(values[3:]) / plain:.2f} |" for arm, values in times.items())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("konkyo-spurious"))
    parser.add_argument("--data", default="lesions,scenes")
    parser.add_argument("--seeds", default="5,3", help="paired seeds of each data set")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = Size(options.images, options.test, options.epochs)
    if options.cost:
        print(cost())
        return
    options.work.mkdir(parents=True, exist_ok=True)
    for data, seeds in zip(options.data.split(","), map(int, options.seeds.split(",")), strict=True):
        if options.sheet:
            sheet(data, size, options.work, options.sheet)
            continue
        if options.table:
            if count := whole(data, seeds, size, options.work):
                print(table(data, count, size, options.work), end="\n\n")
            continue
        for run in runs(data, seeds, size, options.work):
            result(run, size, options.work)


if __name__ == "__main__":
    main()
