"""Are the maps of Eigen-CAM robust to adversarial images, as is said of them? Clean and attacked images are compared.

    python benchmarks/adversarial.py --out FOLDER [--real DIR] [--images 70]     # run, or go on
    python benchmarks/adversarial.py --out FOLDER --report [FILE.md]             # the tables and what the rules say

Networks: `konkyo/scenes-classifier` on drawn scenes of one object; with `--real DIR` a MobileNetV2 and a SqueezeNet on
the photographs of DIR/imagenet, with the weights of DIR/weights. Attacks (untargeted, L-infinity, within the range of
pixels): FGSM and PGD of five steps, of 1, 2, 4 and 8 / 255. Images go round the networks, one of each in turn, and
every finished one is a line of FOLDER/adversarial.jsonl: what has run by any time can be reported.

Rules, written before anything was run. "Adversarial images" are those of PGD that changed the decision. All maps are
brought to 14 x 14 cells; likeness is Pearson's correlation with the clean map, differences are paired by image
(Eigen-CAM minus the other method), intervals are 95 % by 4,000 resamples of the images. A network counts with at
least 10 adversarial images at the size. Size of the attack: 8 / 255, where most images are adversarial.
1. The claim as written: the other is Grad-CAM, each map explains what the network decides of the image it is made of.
   Confirmed: the interval lies above 0 in every network that counts. Refuted: below 0 in every one. Else it cannot be
   told.
2. With the class held (Grad-CAM explains the clean decision on both images): as rule 1. This takes out that Eigen-CAM
   knows no class.
3. Above the floor: as rule 2, of (r - floor) / (1 - floor), whose floor is the mean correlation of an image's clean
   map with those of the other images. This takes out that a method's maps may look alike whatever the image.
4. Robust at all: Eigen-CAM's likeness under PGD less that under random noise of the same size. Robust: the lower end of
   the interval is above -0.05. Not robust: the upper end is below -0.05. By network.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from skimage.metrics import structural_similarity
from torch import Tensor, nn

import konkyo
from konkyo.data.images import find_images, open_image
from konkyo.data.sets.scenes import Scenes
from konkyo.metrics.distances import on_grid
from konkyo.metrics.localisation import ebpg
from konkyo.metrics.variants import pearson, spearman
from konkyo.utils.ledger import Ledger, read_ledger
from konkyo.utils.tensors import min_max, resize

SIZES, STEPS, GRID = (1, 2, 4, 8), 5, 14
FAST = ("eigen_cam", "grad_cam", "grad_cam_pp", "layer_cam", "ablation_cam", "saliency")
FAST_WITHOUT_ABLATION = tuple(name for name in FAST if name != "ablation_cam")
SLOW: dict[str, dict[str, Any]] = {"integrated_gradients": {"steps": 8, "rule": "midpoint"}, "rise": {"masks": 100}}
CONDITIONS = ("clean", "noise 2", "noise 8", "fgsm 8", "pgd 1", "pgd 2", "pgd 4", "pgd 8")
"""Where maps are made; decisions are asked for under all."""
SLOW_CONDITIONS = ("clean", "noise 8", "pgd 8")
EVERY = 5
"""Every so many images meet the slow methods; RISE the scenes only."""
MARGIN, LEAST, RESAMPLES = 0.05, 10, 4_000


@dataclass(frozen=True)
class Case:
    """A case is a network with its images."""

    model: konkyo.Model
    count: int
    read: Callable[[int], tuple[Tensor, Tensor | None]]
    """index -> (prepared image (1, 3, H, W), the object's mask (H, W) or None)"""
    methods: tuple[str, ...] = FAST


def scenes(count: int) -> Case:
    """Returns the shipped classifier with scenes of one object."""
    model, data = konkyo.load("konkyo/scenes-classifier"), Scenes(count, seed=9_000, objects=1)

    def read(index: int) -> tuple[Tensor, Tensor | None]:
        scene = data[index]
        assert model.preprocess is not None
        return model.preprocess(scene.image)[None], scene.masks[0]

    return Case(model, count, read)


def photographs(folder: Path, count: int) -> dict[str, Case]:
    """Returns the real classifiers with the photographs."""
    import timm

    files = find_images(folder / "imagenet")[:count]
    lines = (folder / "imagenet" / "classes.txt").read_text(encoding="utf-8").splitlines()
    classes = tuple(dict.fromkeys(f"{i} {line.split()[-1]}" for i, line in enumerate(lines)))
    mobile = timm.create_model("mobilenetv2_100", pad_type="same")
    mobile.load_state_dict(load_file(folder / "weights" / "mobilenetv2_100_same_imagenet.safetensors"))
    half = (0.5,) * 3
    models = {
        "MobileNetV2": konkyo.Model(
            mobile.eval(), konkyo.Preprocess(resize=256, crop=224, mean=half, std=half), classes
        ),
        "SqueezeNet": konkyo.load(
            "torchvision/squeezenet1_1", weights=folder / "weights" / "squeezenet1_1_imagenet.safetensors"
        ),
    }

    def case(model: konkyo.Model) -> Case:
        def read(index: int) -> tuple[Tensor, Tensor | None]:
            assert model.preprocess is not None
            return model.preprocess(open_image(files[index]))[None], None

        # An ablation of SqueezeNet is a replay per channel: its pooling is not followed by a linear layer.
        return Case(model, len(files), read, FAST if model is models["MobileNetV2"] else FAST_WITHOUT_ABLATION)

    return {name: case(model) for name, model in models.items()}


def gradient(module: nn.Module, images: Tensor, label: int) -> Tensor:
    """Returns d cross-entropy / d images."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        loss = nn.functional.cross_entropy(module(leaf), torch.full((len(images),), label), reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]


def attacked(model: konkyo.Model, image: Tensor, label: int, seed: int) -> dict[str, Tensor]:
    """Returns the image under every condition, prepared (1, 3, H, W)."""
    assert model.preprocess is not None
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (model.preprocess.mean, model.preprocess.std))
    low, high = (0 - mean) / std, (1 - mean) / std
    generator = torch.Generator().manual_seed(seed)

    def clamped(images: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(images, low), high)

    signs = gradient(model.module, image, label).sign()
    noise = torch.randint(2, image.shape, generator=generator) * 2.0 - 1
    sizes = torch.tensor(SIZES).view(-1, 1, 1, 1) / 255 / std
    start = clamped(image + sizes * (torch.rand(len(SIZES), *image.shape[1:], generator=generator) * 2 - 1))
    steps = start
    for _ in range(STEPS):
        moved = steps + 2.5 / STEPS * sizes * gradient(model.module, steps, label).sign()
        steps = clamped(torch.minimum(torch.maximum(moved, image - sizes), image + sizes))
    conditions = {"clean": image}
    for kind, images in (
        ("noise", clamped(image + sizes * noise)),
        ("fgsm", clamped(image + sizes * signs)),
        ("pgd", steps),
    ):
        conditions |= {f"{kind} {size}": images[i : i + 1] for i, size in enumerate(SIZES)}
    return conditions


Compared = dict[str, float | None]


def compared(clean: Tensor, other: Tensor) -> Compared:
    """Returns how alike two maps (1, G, G) are."""
    one, two = clean.flatten(1), other.flatten(1)
    ssim = structural_similarity(clean[0].double().numpy(), other[0].double().numpy(), data_range=1.0, win_size=7)
    values = {"pearson": float(pearson(one, two)), "spearman": float(spearman(one, two)), "ssim": float(ssim)}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def on_cells(map_: Tensor) -> Tensor:
    """Returns a map (1, h, w) on the common grid, from 0 to 1."""
    return min_max(on_grid(map_, GRID))


def _maps(
    case: Case,
    conditions: Mapping[str, Tensor],
    names: Sequence[str],
    methods: Sequence[str],
    classes: Sequence[int],
    options: Mapping[str, Any],
) -> dict[str, dict[str, Tensor]]:
    """Returns method -> condition -> the map (1, h, w) of a class."""
    if not names:
        return {method: {} for method in methods}
    images = torch.cat([conditions[name] for name in names])
    results = konkyo.compare(case.model, images, methods, target=list(classes), options=dict(options))
    return {m: {name: r.maps[i : i + 1] for i, name in enumerate(names)} for m, r in results.items()}


def measured(case: Case, index: int) -> dict[str, Any]:
    """Returns what is recorded of an image."""
    model = case.model
    image, mask = case.read(index)
    with torch.no_grad():
        label = int(model.module(image).argmax())
    conditions = attacked(model, image, label, index)
    with torch.no_grad():
        decisions = model.module(torch.cat(list(conditions.values()))).argmax(1).tolist()
    record: dict[str, Any] = {
        "decisions": dict(zip(conditions, decisions, strict=True)),
        "maps": {},
        "alike": {},
        "ebpg": {},
    }
    work: list[tuple[Sequence[str], tuple[str, ...], dict[str, Any]]] = [(case.methods, CONDITIONS, {})]
    if index % EVERY == EVERY - 1:
        slow = SLOW if mask is not None else {name: SLOW[name] for name in SLOW if name != "rise"}
        work += [((name,), SLOW_CONDITIONS, options) for name, options in slow.items()]
    for methods, names, options in work:
        changed = tuple(name for name in names if record["decisions"][name] != label)
        held = _maps(case, conditions, names, methods, [label] * len(names), options)
        decided = _maps(case, conditions, changed, methods, [record["decisions"][name] for name in changed], options)
        for method in methods:
            clean = on_cells(held[method]["clean"])
            record["maps"][method] = [round(value, 3) for value in clean.flatten().tolist()]
            record["alike"][method], record["ebpg"][method] = {}, {}
            for name in names:
                for kind, of in (("held", held), ("decided", decided if name in changed else held)):
                    map_ = of[method][name]
                    record["alike"][method][f"{name} {kind}"] = compared(clean, on_cells(map_))
                    if mask is not None:
                        large = resize(map_, (mask.shape[0], mask.shape[1]))
                        record["ebpg"][method][f"{name} {kind}"] = round(float(ebpg(large, masks=mask[None])), 4)
    return record


# --- the report ------------------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean and its 95 % interval by resampling."""
    sample = torch.tensor(list(values), dtype=torch.float64)
    if len(sample) < 2:
        return (float(sample.mean()) if len(sample) else math.nan), math.nan, math.nan
    drawn = torch.randint(len(sample), (RESAMPLES, len(sample)), generator=torch.Generator().manual_seed(0))
    ends = sample[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(sample.mean()), ends[0], ends[1]


def shown(values: Sequence[float], signed: bool = False) -> str:
    if not values:
        return ""
    mean, low, high = interval(values)
    sign = "+" if signed else ""
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


Record = Mapping[str, Any]


def likeness(record: Record, method: str, condition: str, kind: str, measure: str = "pearson") -> float | None:
    value = record["alike"].get(method, {}).get(f"{condition} {kind}", {}).get(measure)
    return None if value is None else float(value)


def floors(records: Mapping[str, Record], method: str) -> dict[str, float]:
    """Returns the mean correlation of every image's clean map with those of the others."""
    maps = {key: torch.tensor(r["maps"][method]) for key, r in records.items() if method in r["maps"]}
    if len(maps) < 2:
        return {}
    stack = torch.stack(list(maps.values())).double()
    matrix = torch.corrcoef(stack).fill_diagonal_(math.nan)
    return dict(zip(maps, matrix.nanmean(1).tolist(), strict=True))


def adversarial(records: Mapping[str, Record], condition: str) -> dict[str, Record]:
    """Returns the records of images whose decision the condition changed."""
    return {k: r for k, r in records.items() if r["decisions"][condition] != r["decisions"]["clean"]}


def differences(
    records: Mapping[str, Record], condition: str, kind: str, other: str, *, above_floor: bool = False
) -> list[float]:
    """Returns Eigen-CAM's likeness less that of another method, of every adversarial image that has both."""
    floor = {m: floors(records, m) for m in ("eigen_cam", other)} if above_floor else {}
    values = []
    for key, record in adversarial(records, condition).items():
        pair = []
        for method in ("eigen_cam", other):
            r = likeness(record, method, condition, kind)
            if r is not None and above_floor:
                r = (r - floor[method][key]) / (1 - floor[method][key])
            pair.append(r)
        if pair[0] is not None and pair[1] is not None:
            values.append(pair[0] - pair[1])
    return values


def by_noise(records: Mapping[str, Record], size: int) -> list[float]:
    """Returns Eigen-CAM's likeness under PGD less that under noise, of every adversarial image."""
    pairs = [
        (likeness(r, "eigen_cam", f"pgd {size}", "held"), likeness(r, "eigen_cam", f"noise {size}", "held"))
        for r in adversarial(records, f"pgd {size}").values()
    ]
    return [a - b for a, b in pairs if a is not None and b is not None]


def verdict(of_networks: Mapping[str, Sequence[float]]) -> str:
    ends = [interval(values)[1:] for values in of_networks.values() if len(values) >= LEAST]
    if not ends:
        return "cannot be told: too few adversarial images"
    if all(low > 0 for low, _ in ends):
        return "confirmed"
    return "refuted" if all(high < 0 for _, high in ends) else "cannot be told"


def robust(values: Sequence[float]) -> str:
    if len(values) < LEAST:
        return "too few"
    _, low, high = interval(values)
    return "robust" if low > -MARGIN else "not robust" if high < -MARGIN else "cannot be told"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def report(entries: Mapping[str, Record], size: int = 8) -> Iterator[str]:
    """Yields the lines of the report."""
    networks: dict[str, dict[str, Record]] = {}
    for key, record in entries.items():
        name, _, index = key.rpartition("/")
        networks.setdefault(name, {})[index] = record
    yield "Images whose decision the change of the image changed:\n"
    conditions = [f"{kind} {s}" for kind in ("noise", "fgsm", "pgd") for s in SIZES]
    rows = [
        [name, str(len(of)), *(f"{len(adversarial(of, c)) / len(of):.0%}" for c in conditions)]
        for name, of in networks.items()
    ]
    yield from table(["network", "images", *conditions], rows)
    yield "Rules:\n"
    rows = []
    for rule, kind, above in (
        ("1 as written", "decided", False),
        ("2 class held", "held", False),
        ("3 above the floor", "held", True),
    ):
        of_networks = {
            name: differences(of, f"pgd {size}", kind, "grad_cam", above_floor=above) for name, of in networks.items()
        }
        rows.append([rule, *(shown(v, True) for v in of_networks.values()), verdict(of_networks)])
    noise = {name: by_noise(of, size) for name, of in networks.items()}
    told = ", ".join(f"{name}: {robust(values)}" for name, values in noise.items())
    rows.append(["4 PGD against noise", *(shown(v, True) for v in noise.values()), told])
    yield from table(["rule", *networks, "told"], rows)
    for name, of in networks.items():
        yield from _of_network(name, of, size)


def _of_network(name: str, records: Mapping[str, Record], size: int) -> Iterator[str]:
    pgd, noise = f"pgd {size}", f"noise {size}"
    changed = adversarial(records, pgd)
    yield f"{name}, the {len(changed)} adversarial images of PGD {size} / 255 (fewer for the slow methods):\n"
    rows = []
    for method in (*FAST, *SLOW):
        floor = floors(records, method)
        if not floor:
            continue

        def mean(condition: str, kind: str, measure: str = "pearson", method: str = method) -> str:
            values = [likeness(r, method, condition, kind, measure) for r in changed.values()]
            return shown([v for v in values if v is not None])

        energy = [
            r["ebpg"][method][f"{pgd} held"] - r["ebpg"][method]["clean held"]
            for r in changed.values()
            if r["ebpg"].get(method)
        ]
        row = [f"`{method}`", f"{statistics.fmean(floor.values()):.2f}", mean(noise, "held"), mean(pgd, "held")]
        row += [mean(pgd, "decided"), mean(pgd, "held", "spearman"), mean(pgd, "held", "ssim"), shown(energy, True)]
        row += [
            "" if method == "eigen_cam" else shown(differences(records, pgd, kind, method), True)
            for kind in ("held", "decided")
        ]
        rows.append(row)
    head = [
        "method",
        "other images (floor)",
        "noise",
        "PGD, class held",
        "PGD, new decision",
        "rank correlation",
        "SSIM",
    ]
    head += ["EBPG, change", "Eigen-CAM less it, class held", "Eigen-CAM less it, new decision"]
    yield from table(head, rows)
    yield f"{name}, Pearson with the clean map, all images, class held:\n"
    rows = []
    for method in FAST:
        row = [f"`{method}`"]
        for condition in CONDITIONS[1:]:
            values = [likeness(r, method, condition, "held") for r in records.values()]
            known = [v for v in values if v is not None]
            row.append(f"{statistics.fmean(known):.2f}" if known else "")
        rows += [row] if any(row[1:]) else []
    yield from table(["method", *CONDITIONS[1:]], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--images", type=int, default=70)
    parser.add_argument("--report", nargs="?", const="-")
    arguments = parser.parse_args()
    file = arguments.out / "adversarial.jsonl"
    if arguments.report:
        text = "\n".join(report(read_ledger(file)[1]))
        print(text) if arguments.report == "-" else Path(arguments.report).write_text(text + "\n", encoding="utf-8")
        return
    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
    cases = {"scenes": scenes(arguments.images)}
    if arguments.real is not None:
        cases |= photographs(arguments.real, arguments.images)
    for case in cases.values():
        case.model.module.requires_grad_(False)
    settings = {
        "sizes": SIZES,
        "steps": STEPS,
        "grid": GRID,
        "methods": FAST,
        "slow": SLOW,
        "every": EVERY,
        "conditions": CONDITIONS,
    }
    with Ledger(file, settings) as ledger:
        for index in range(max(case.count for case in cases.values())):
            for name, case in cases.items():
                if index < case.count and f"{name}/{index}" not in ledger.entries:
                    ledger.add(f"{name}/{index}", measured(case, index))
                    print(name, index, flush=True)


if __name__ == "__main__":
    main()
