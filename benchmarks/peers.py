"""Time and memory of konkyo beside pytorch-grad-cam, torch-cam, captum, lime and shap, in one process, interleaved.

Every number is a ratio to the model's plain forward under `inference_mode`, measured in the same rounds: the contenders
of a section take turns, and the median of their rounds is taken, with its quartiles. CPU time counts both cores, so it
hardly feels other work on the machine; wall time is what a user waits. MB is the peak of memory above the level before.

    python benchmarks/peers.py            # everything; about a quarter of an hour on 2 cores
    python benchmarks/peers.py --only gradient --rounds 15

Results go to benchmarks/results.json, from which the docs' tables are made.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not count as work

import torch
import torchvision
from torch import Tensor, nn

import konkyo
from konkyo.methods.game import hidden_pixels
from konkyo.utils.files import replacing

RESULTS = Path(__file__).with_name("results.json")
GRADIENT = ["grad_cam", "grad_cam_pp", "layer_cam", "hires_cam", "xgrad_cam", "grad_cam_elementwise"]
PGC = {
    "grad_cam": "GradCAM",
    "grad_cam_pp": "GradCAMPlusPlus",
    "layer_cam": "LayerCAM",
    "hires_cam": "HiResCAM",
    "xgrad_cam": "XGradCAM",
    "grad_cam_elementwise": "GradCAMElementWise",
    "eigen_cam": "EigenCAM",
    "ablation_cam": "AblationCAM",
    "score_cam": "ScoreCAM",
    "full_grad": "FullGrad",
}
TORCHCAM = {"grad_cam": "GradCAM", "layer_cam": "LayerCAM", "xgrad_cam": "XGradCAM", "score_cam": "ScoreCAM"}
PACKAGES = (
    *("torch", "torchvision", "konkyo", "grad-cam", "torchcam", "captum"),
    *("lime", "shap", "scikit-learn"),
)
Contender = Callable[[], object]


# --- contenders -------------------------------------------------------------------------------------------------------


def ours(model: nn.Module, x: Tensor, method: str, **options: object) -> Contender:
    return lambda: konkyo.explain(model, x, method=method, **options)


def pytorch_grad_cam(
    model: nn.Module, x: Tensor, method: str, layer: nn.Module, target: int | None = 0, **options: object
) -> Contender:
    import pytorch_grad_cam as pgc
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    reshape = options.pop("reshape_transform", None)

    def call() -> object:
        with getattr(pgc, PGC[method])(model=model, target_layers=[layer], reshape_transform=reshape) as cam:
            return cam(x, None if target is None else [ClassifierOutputTarget(target)], **options)

    return call


def torch_cam(model: nn.Module, x: Tensor, method: str, layer: str) -> Contender:
    from torchcam import methods

    def call() -> object:
        with getattr(methods, TORCHCAM[method])(model, layer) as extractor:
            if method == "score_cam":
                with torch.no_grad():
                    scores = model(x)
            else:
                scores = model(x.detach().requires_grad_())
            return extractor([0], scores)

    return call


def captum(model: nn.Module, x: Tensor, layer: nn.Module) -> Contender:
    from captum.attr import LayerGradCam

    return lambda: LayerGradCam(model, layer).attribute(x, target=0)


def captum_layer_ig(model: nn.Module, x: Tensor, layer: nn.Module, steps: int) -> Contender:
    from captum.attr import LayerIntegratedGradients

    return lambda: LayerIntegratedGradients(model, layer).attribute(
        x, target=0, n_steps=steps, method="riemann_right", internal_batch_size=10
    )


def bare(model: nn.Module, x: Tensor, count: int, batch: int, dtype: torch.dtype | None = None) -> Contender:
    """`count` channels_last forwards and nothing else: what a method of that many forwards cannot be faster than."""
    images = x.expand(batch, *x.shape[1:]).contiguous(memory_format=torch.channels_last)

    def call() -> None:
        with torch.inference_mode(), torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
            for start in range(0, count, batch):
                model(images[: min(batch, count - start)])

    return call


# --- measuring --------------------------------------------------------------------------------------------------------


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def once(call: Contender) -> tuple[float, float]:
    """(wall seconds, CPU seconds of all threads)"""
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronise()
    return time.perf_counter() - wall, time.process_time() - cpu


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    """The median of wall seconds, and that of CPU seconds."""
    wall, cpu = zip(*times, strict=True)
    return statistics.median(wall), statistics.median(cpu)


def peak_megabytes(call: Contender) -> float | None:
    """Peak memory during the call above the level before it; None where the system does not tell."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1])


def section(
    title: str, forward: Contender, contenders: dict[str, Contender], rounds: int, slow: tuple[str, ...] = ()
) -> dict[str, object]:
    """Medians over the rounds of a contender's time over that of the forward, with their quartiles as the spread.

    Contenders named in `slow` run in the first round only, and have no spread.
    """
    print(f"\n{title}", flush=True)
    peaks = {}
    for name, call in contenders.items():
        if name not in slow:
            call()  # warm
        peaks[name] = peak_megabytes(call) if name not in slow else None
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("forward", *contenders)}
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, call in {"forward": forward, **contenders}.items():
            if name in slow and turn:
                continue
            result: list[tuple[float, float]] = []
            if name in slow:
                peaks[name] = peak_megabytes(lambda call=call, result=result: result.append(once(call)))
            else:
                result.append(once(call))
            if name == "forward":
                if result[0][0] < 1:
                    result += [once(call) for _ in range(4)]
                of_round = medians(result)
            else:
                ratios[name].append((result[0][0] / of_round[0], result[0][1] / of_round[1]))
            times[name] += result
    rows: dict[str, dict[str, Any]] = {}
    for name in contenders:
        wall, cpu = medians(ratios[name])
        rows[name] = {"wall": wall, "cpu": cpu, "mb": peaks[name], "rounds": len(times[name])}
        if len(ratios[name]) > 2:
            for key, column in zip(("wall spread", "cpu spread"), zip(*ratios[name], strict=True), strict=True):
                low, _, high = statistics.quantiles(column, n=4, method="inclusive")
                rows[name][key] = [low, high]
        memory = "" if peaks[name] is None else f"{peaks[name]:7.0f} MB"
        spread = "({:.2f} to {:.2f})".format(*rows[name]["wall spread"]) if "wall spread" in rows[name] else ""
        print(f"  {name:42s} wall {wall:8.2f} {spread:18s} cpu {cpu:8.2f}  {memory}", flush=True)
    return {"title": title, "rounds": rounds, "forward_ms": medians(times["forward"])[0] * 1e3, "rows": rows}


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, and no progress bars of peers."""
    import tqdm

    show = tqdm.tqdm.__init__

    def hide(self: object, *args: object, **kwargs: object) -> None:
        show(self, *args, **{**kwargs, "disable": True})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tqdm.tqdm.__init__ = hide
        try:
            yield
        finally:
            tqdm.tqdm.__init__ = show


# --- sections ---------------------------------------------------------------------------------------------------------


def network(name: str, device: str) -> tuple[nn.Module, Tensor, Contender]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().to(device)
    x = torch.randn(1, 3, 224, 224, device=device)

    def forward() -> None:
        with torch.inference_mode():
            model(x)

    for _ in range(5):
        forward()
    return model, x, forward


def gradient(device: str, rounds: int) -> Iterator[dict[str, object]]:
    for name in ("resnet18", "resnet50"):
        model, x, forward = network(name, device)
        contenders: dict[str, Contender] = {}
        for method in ("grad_cam", "grad_cam_pp", "layer_cam"):
            contenders[f"konkyo {method}"] = ours(model, x, method, target=0)
            contenders[f"pytorch-grad-cam {method}"] = pytorch_grad_cam(model, x, method, model.layer4)
            if method in TORCHCAM:
                contenders[f"torch-cam {method}"] = torch_cam(model, x, method, "layer4")
        contenders["captum grad_cam"] = captum(model, x, model.layer4)
        yield section(f"{name}: one gradient CAM at the last block", forward, contenders, rounds)
        every = [pytorch_grad_cam(model, x, m, model.layer4) for m in GRADIENT]
        ten = [pytorch_grad_cam(model, x, "grad_cam", model.layer4, target=c) for c in range(10)]
        contenders = {
            "konkyo six gradient CAMs": lambda model=model, x=x: konkyo.compare(model, x, GRADIENT, target=0),
            "pytorch-grad-cam six gradient CAMs": lambda every=every: [call() for call in every],
            "konkyo grad_cam, top ten classes": ours(model, x, "grad_cam", target=konkyo.TopK(10)),
            "pytorch-grad-cam grad_cam, ten classes": lambda ten=ten: [call() for call in ten],
            "konkyo eigen_cam": ours(model, x, "eigen_cam"),
            "pytorch-grad-cam eigen_cam": pytorch_grad_cam(model, x, "eigen_cam", model.layer4),
        }
        yield section(f"{name}: several at once, and Eigen-CAM", forward, contenders, rounds)


def ablation(device: str, rounds: int) -> Iterator[dict[str, object]]:
    model, x, forward = network("resnet18", device)
    contenders = {
        "konkyo ablation_cam, layer4": ours(model, x, "ablation_cam", target=0),
        "pytorch-grad-cam ablation_cam, layer4": pytorch_grad_cam(model, x, "ablation_cam", model.layer4),
        "konkyo ablation_cam, layer3": ours(model, x, "ablation_cam", target=0, layer="layer3"),
        "pytorch-grad-cam ablation_cam, layer3": pytorch_grad_cam(model, x, "ablation_cam", model.layer3),
    }
    slow = tuple(name for name in contenders if "pytorch" in name)
    yield section("resnet18: Ablation-CAM (512 and 256 channels)", forward, contenders, min(rounds, 5), slow)
    model, x, forward = network("resnet50", device)
    contenders = {"konkyo ablation_cam, layer4": ours(model, x, "ablation_cam", target=0)}
    yield section("resnet50: Ablation-CAM (2048 channels)", forward, contenders, rounds)


def score(device: str, rounds: int) -> Iterator[dict[str, object]]:
    model, x, forward = network("resnet18", device)
    batch = 16 if device == "cpu" else 128
    contenders = {
        "bare 512 forwards, channels_last fp32": bare(model, x, 512, batch),
        "konkyo score_cam": ours(model, x, "score_cam", target=0),
        "bare 512 forwards, channels_last bf16": bare(model, x, 512, batch, torch.bfloat16),
        'konkyo score_cam, precision="bf16"': ours(model, x, "score_cam", target=0, precision="bf16"),
        "pytorch-grad-cam score_cam": pytorch_grad_cam(model, x, "score_cam", model.layer4),
        "torch-cam score_cam": torch_cam(model, x, "score_cam", "layer4"),
    }
    slow = tuple(name for name in contenders if "cam score" in name and "konkyo" not in name)
    result = section("resnet18: Score-CAM (512 channels)", forward, contenders, min(rounds, 3), slow)
    full = konkyo.explain(model, x, method="score_cam", target=0).maps.flatten()
    half = konkyo.explain(model, x, method="score_cam", target=0, precision="bf16").maps.flatten()
    result["bf16 correlation"] = torch.corrcoef(torch.stack([full, half]))[0, 1].item()
    print(f"  correlation of the bf16 map with the fp32 map: {result['bf16 correlation']:.4f}")
    yield result
    model, x, forward = network("resnet50", device)
    contenders = {"konkyo score_cam": ours(model, x, "score_cam", target=0)}
    yield section("resnet50: Score-CAM (2048 channels)", forward, contenders, 1, ("konkyo score_cam",))


def transformer(device: str, rounds: int) -> Iterator[dict[str, object]]:
    model, x, forward = network("vit_b_16", device)
    nn.init.normal_(model.heads.head.weight, std=0.03)  # torchvision's is zero, and so would be every gradient
    layer = model.encoder.layers[-1].ln_1

    def grid(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].reshape(len(tokens), 14, 14, -1).permute(0, 3, 1, 2)

    contenders: dict[str, Contender] = {}
    for method in ("grad_cam", "layer_cam"):
        contenders[f"konkyo {method}"] = ours(model, x, method, target=0)
        contenders[f"pytorch-grad-cam {method}"] = pytorch_grad_cam(model, x, method, layer, reshape_transform=grid)
    contenders["konkyo six gradient CAMs"] = lambda: konkyo.compare(model, x, GRADIENT, target=0)
    for method in ("attention_rollout", "transformer_attribution", "le_grad"):
        contenders[f"konkyo {method}"] = ours(model, x, method, target=0)
    yield section("vit_b_16: gradient CAMs at the last ln_1, and attention", forward, contenders, rounds)


def whole(device: str, rounds: int) -> Iterator[dict[str, object]]:
    for name in ("resnet18", "resnet50"):
        model, x, forward = network(name, device)
        contenders = {
            "konkyo full_grad": ours(model, x, "full_grad", target=0),
            "konkyo full_grad and six gradient CAMs": lambda model=model, x=x: konkyo.compare(
                model, x, ["full_grad", *GRADIENT], target=0
            ),
            "pytorch-grad-cam full_grad": pytorch_grad_cam(model, x, "full_grad", model.layer4),
        }
        yield section(f"{name}: FullGrad", forward, contenders, rounds, ("pytorch-grad-cam full_grad",))


def path(device: str, rounds: int) -> Iterator[dict[str, object]]:
    model, x, forward = network("resnet18", device)
    contenders = {}
    for layer in ("layer2", "layer3"):
        contenders[f"konkyo integrated_gradients, {layer}"] = ours(
            model, x, "integrated_gradients", target=0, layer=layer, steps=50
        )
        contenders[f"captum layer IG, {layer}"] = captum_layer_ig(model, x, getattr(model, layer), 50)
    yield section("resnet18: Integrated Gradients at a layer, 50 steps", forward, contenders, min(rounds, 5))


def augmentation(device: str, rounds: int) -> Iterator[dict[str, object]]:
    for name in ("resnet18", "resnet50"):
        model, x, _ = network(name, device)

        def six(model: nn.Module = model, x: Tensor = x) -> None:
            with torch.inference_mode():
                for _ in range(6):
                    model(x)

        contenders = {
            "konkyo augmented(grad_cam)": ours(model, x, "augmented(grad_cam)", target=0),
            "pytorch-grad-cam grad_cam, aug_smooth": pytorch_grad_cam(
                model, x, "grad_cam", model.layer4, aug_smooth=True
            ),
        }
        yield section(f"{name}: six augmented views, against six forwards", six, contenders, rounds)


def released_odam(module: nn.Module, x: Tensor, layer: nn.Module, queries: list[int]) -> Contender:
    """ODAM as released: for every instance a fresh forward and a backward into every parameter."""

    def call() -> list[Tensor]:
        maps = []
        for query in queries:
            held: list[Tensor] = []

            def keep(_module: nn.Module, _args: object, output: object, held: list[Tensor] = held) -> object:
                held.append(output.feature_maps[-1].requires_grad_())
                held[0].retain_grad()
                return output

            handle = layer.register_forward_hook(keep)
            try:
                probabilities = module(pixel_values=x).logits.softmax(-1)[0, query, :-1]
            finally:
                handle.remove()
            module.zero_grad()
            probabilities.amax().backward()
            maps.append((held[0].grad * held[0].detach()).sum(1).relu())
        module.zero_grad()
        return maps

    return call


def detection(device: str, rounds: int) -> Iterator[dict[str, object]]:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    config = DetrConfig(backbone_config=ResNetConfig(out_features=["stage4"]), use_timm_backbone=False)
    module = DetrForObjectDetection(config).eval().to(device)
    x, ten = torch.randn(1, 3, 480, 640, device=device), konkyo.Detections(threshold=0, top=10)
    queries = [t.index for t in konkyo.explain(module, x, method="odam", target=ten).targets]

    def forward() -> None:
        with torch.inference_mode():
            module(pixel_values=x)

    backbone = next(m for m in module.modules() if type(m).__name__ == "ResNetBackbone")
    contenders = {
        "konkyo odam, 1 instance": ours(module, x, "odam", target=konkyo.Detections(threshold=0, top=1)),
        "konkyo odam, 10 instances": ours(module, x, "odam", target=ten),
        'konkyo odam, 10 instances, precision="bf16"': ours(module, x, "odam", target=ten, precision="bf16"),
        "as released: odam, 10 instances": released_odam(module, x, backbone, queries),
    }
    slow = ("as released: odam, 10 instances",)
    yield section("DETR R50, 640 x 480: ODAM", forward, contenders, min(rounds, 5), slow)

    def many(count: int) -> Contender:
        def call() -> None:
            with torch.inference_mode():
                for _ in range(count):
                    module(pixel_values=x)

        return call

    contenders = {
        "konkyo ig_odam, 10 instances": ours(module, x, "ig_odam", target=ten),
    }
    title = "DETR R50, 640 x 480: a path of 32 nodes, against 32 forwards"
    yield section(title, many(32), contenders, 1, tuple(contenders))
    contenders = {"konkyo d_rise, 10 instances, 32 masks": ours(module, x, "d_rise", target=ten, masks=32)}
    title = "DETR R50, 640 x 480: D-RISE, against its 32 forwards"
    yield section(title, bare(module, x, 32, 8), contenders, 1)
    torch.manual_seed(0)
    module = torchvision.models.get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None)
    module = module.eval().to(device)
    picture = torch.rand(1, 3, 480, 640, device=device)

    def forward_rcnn() -> None:
        with torch.inference_mode():
            module(picture)

    best = konkyo.Detections(threshold=0, top=10, suppressed=False)  # random weights leave none above the module's own
    contenders = {"konkyo odam, 10 instances": ours(module, picture, "odam", target=best)}
    yield section("Faster R-CNN R50 FPN, 640 x 480: ODAM", forward_rcnn, contenders, min(rounds, 5))


def adaptive(device: str, rounds: int) -> Iterator[dict[str, object]]:
    """On a trained detector: instances of random weights are all alike, and so want their nodes at the same places."""
    detector = konkyo.load("konkyo/scenes-detr", device=device)
    scene = konkyo.data.scenes.Scenes(8, seed=2033, size=256, objects=5)[0]
    x = torch.stack([detector.preprocess(scene.image)]).to(device)
    count = len(konkyo.explain(detector, x, method="odam"))

    def forwards() -> None:
        with torch.inference_mode():
            for _ in range(32):
                detector(x)

    contenders = {
        f"konkyo {name}, {count} instances": ours(detector, x, name) for name in ("ig_odam", "adaptive_ig_odam")
    }
    yield section("konkyo/scenes-detr: paths of 32 nodes, against 32 forwards", forwards, contenders, min(rounds, 5))


def adaptive_ratio(device: str, rounds: int) -> Iterator[dict[str, object]]:
    """Adaptive IG-ODAM against uniform IG-ODAM of as many nodes, on scenes of six and seven detections."""
    detector = konkyo.load("konkyo/scenes-detr", device=device)
    for objects, number in ((5, 5), (5, 11), (7, 1), (7, 2)):
        scene = konkyo.data.scenes.Scenes(12, seed=2033, size=256, objects=objects)[number]
        x = torch.stack([detector.preprocess(scene.image)]).to(device)
        count = len(konkyo.explain(detector, x, method="odam"))
        scene_name = f"scene {number} of {objects} objects, {count} instances"
        # one thread: what waits for the other is no work of either
        uniform, halved = (one_thread(ours(detector, x, name)) for name in ("ig_odam", "adaptive_ig_odam"))
        title = f"konkyo/scenes-detr, {scene_name}: adaptive nodes against as many uniform ones, one thread"
        yield section(title, uniform, {"konkyo adaptive_ig_odam, 32 nodes": halved}, min(rounds, 5))


def one_thread(call: Contender) -> Contender:
    """The call on a single thread."""

    def alone() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return alone


def of_instances(method: konkyo.Method) -> bool:
    """Whether a method is made for detections."""
    return method.score == "similarity" or method.function.__module__ == "konkyo.methods.odam"


def costs(device: str, rounds: int) -> Iterator[dict[str, object]]:
    """Every method once, with its defaults: what the methods page says that it costs."""
    slow = {"rescore", "revisit", "regrad", "on", "ablate", "integrate"}
    for name in ("resnet18", "vit_b_16"):
        model, x, forward = network(name, device)
        if name == "vit_b_16":
            nn.init.normal_(model.heads.head.weight, std=0.03)
        tokens = {"attentions", "block_gradients"}
        every = {n: m for n, m in konkyo.methods().items() if not of_instances(m)}
        chosen = {n: m for n, m in every.items() if bool(tokens & set(m.needs)) == (name == "vit_b_16")}
        contenders = {n: ours(model, x, n, target=0) for n in chosen}
        once_only = tuple(n for n, m in chosen.items() if slow & set(m.needs) and n != "ablation_cam")
        yield section(f"{name}: every method with its defaults", forward, contenders, min(rounds, 5), once_only)
    detector = konkyo.load("konkyo/scenes-detr", device=device)
    x = torch.stack([detector.preprocess(konkyo.data.scenes.Scenes(1, seed=2033, size=256)[0].image)]).to(device)

    def detect() -> None:
        with torch.inference_mode():
            detector(x)

    chosen = {n: m for n, m in konkyo.methods().items() if of_instances(m)}
    contenders = {n: ours(detector, x, n, target=konkyo.Detections(top=1)) for n in chosen}
    once_only = tuple(n for n, m in chosen.items() if slow & set(m.needs))
    title = "konkyo/scenes-detr: every method for detections with its defaults, of one instance"
    yield section(title, detect, contenders, min(rounds, 5), once_only)


def measuring(device: str, rounds: int) -> Iterator[dict[str, object]]:
    """Metrics against what they cannot do without, and ROAD's imputation against pytorch-grad-cam's."""
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    from konkyo.metrics.imputation import impute

    model, x, forward = network("resnet18", device)
    maps = torch.rand(1, 7, 7, device=device)

    def score(variants: Tensor, __rows: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(variants.contiguous(memory_format=torch.channels_last)).softmax(1)[:, 0]

    def curves() -> None:
        for name in ("deletion", "insertion"):
            konkyo.metrics.METRICS[name](maps, images=x, score=score, batch=32)

    contenders = {"konkyo deletion + insertion of 100 steps (202 forwards)": curves}
    title = "resnet18, 224 x 224: deletion and insertion, against 200 forwards in batches of 32"
    yield section(title, bare(model, x, 200, 32), contenders, min(rounds, 5))

    images = torch.randn(12, 3, 224, 224, device=device)
    order = nn.functional.interpolate(torch.rand(12, 1, 7, 7, device=device), (224, 224), mode="bilinear").flatten(1)
    removed = (order > order.median(1, keepdim=True).values).view(12, 224, 224)
    imputer = NoisyLinearImputer(noise=0.0)

    def ours_at_once() -> None:
        impute(images, removed, noise=0.0)

    def theirs() -> None:
        for image, gone in zip(images.cpu(), removed.cpu(), strict=True):
            imputer(image, (~gone).float())

    title = "ROAD's imputation of 12 images, half of each removed by a map, against konkyo's"
    yield section(title, ours_at_once, {"pytorch-grad-cam NoisyLinearImputer": theirs}, min(rounds, 5))

    many, masks = (
        torch.rand(1000, 224, 224, device=device),
        torch.zeros(1000, 224, 224, dtype=torch.bool, device=device),
    )
    masks[:, 50:150, 60:160] = True

    def localisation() -> None:
        for name in ("vea", "ebpg", "pointing_game"):
            konkyo.metrics.METRICS[name](many, masks=masks)

    title = "VEA, EBPG and pointing game of 1,000 maps of 224 x 224, against a forward of resnet18"
    yield section(title, forward, {"konkyo vea + ebpg + pointing_game": localisation}, min(rounds, 5))


def tiles(device: str) -> Tensor:
    """Segments (224, 224) in the form of 7 x 7 tiles, for every contender the same."""
    cells = torch.arange(49, device=device).view(7, 7)
    return cells.repeat_interleave(32, 0).repeat_interleave(32, 1)


def lime_package(model: nn.Module, x: Tensor, segments: Tensor, samples: int, batch: int) -> Contender:
    from lime.lime_image import LimeImageExplainer

    image, parts = x[0].permute(1, 2, 0).double().cpu().numpy(), segments.cpu().numpy()
    predict, explainer = of_pixels(model, x.device, softmax=True), LimeImageExplainer(random_state=0)
    return lambda: explainer.explain_instance(
        *(image, predict),
        labels=(0,),
        top_labels=None,
        num_samples=samples,
        batch_size=batch,
        segmentation_fn=lambda _: parts,
    )


def of_pixels(model: nn.Module, device: torch.device, softmax: bool = False) -> Callable[[Any], Any]:
    """The network as a function of arrays (N, H, W, C), as lime and shap want it."""

    def predict(images: Any) -> Any:
        with torch.inference_mode():
            batch = torch.as_tensor(images).to(device, torch.float32).permute(0, 3, 1, 2)  # channels_last as it lies
            out = model(batch)
            return (out.softmax(1) if softmax else out).cpu().numpy()

    return predict


def shap_kernel(model: nn.Module, x: Tensor, hidden: Tensor, segments: Tensor, samples: int, batch: int) -> Contender:
    import shap

    def value(shown: Any) -> Any:
        masks = torch.as_tensor(shown, device=x.device).bool()
        found = []
        with torch.inference_mode():
            for part in masks.split(batch):
                found.append(model(torch.where(part[:, segments][:, None], x, hidden))[:, 0])
        return torch.cat(found).cpu().numpy()

    count = int(segments.max()) + 1
    none, whole = torch.zeros(1, count).numpy(), torch.ones(1, count).numpy()
    # every segment is kept, as with konkyo; by default about ten are
    return lambda: shap.KernelExplainer(value, none).shap_values(
        whole, nsamples=samples, l1_reg=f"num_features({count})", silent=True
    )


def shap_partition(model: nn.Module, x: Tensor, evaluations: int, batch: int) -> Contender:
    import shap

    image, predict = x.permute(0, 2, 3, 1).cpu().numpy(), of_pixels(model, x.device)

    def call() -> object:
        masker = shap.maskers.Image("blur(56,56)", image[0].shape)
        explainer = shap.PartitionExplainer(lambda images: predict(images)[:, :1], masker)
        return explainer(image, max_evals=evaluations, batch_size=batch, silent=True)

    return call


def games(device: str, rounds: int) -> Iterator[dict[str, object]]:
    """Methods of segments: about as many forwards of batches as large, of the same segments, hidden in the same way."""
    from captum import attr

    model, x, _ = network("resnet18", device)
    batch, segments = 16 if device == "cpu" else 128, tiles(device)
    hidden = hidden_pixels(x, torch.zeros_like(x), segments[None], "mean")
    mask, grid = segments[None, None], {"segments": segments, "target": 0}
    theirs = {"target": 0, "baselines": hidden, "feature_mask": mask, "perturbations_per_eval": batch}

    def captum(kind: str, **options: object) -> Contender:
        explainer = getattr(attr, kind)(model)
        return lambda: explainer.attribute(x, **theirs, **options)

    def measured(name: str, count: int, contenders: dict[str, Contender], slow: tuple[str, ...] = ()) -> object:
        title = f"resnet18, 224 x 224, 49 segments: {name}, against {count} forwards in batches of {batch}"
        return section(title, bare(model, x, count, batch), contenders, min(rounds, 5), slow)

    contenders = {
        "konkyo lime": ours(model, x, "lime", samples=96, **grid),
        "lime LimeImageExplainer": lime_package(model, x, segments, 96, batch),
        "captum Lime": captum("Lime", n_samples=96),
    }
    yield measured("LIME of 96 samples", 96, contenders)
    contenders = {
        "konkyo kernel_shap": ours(model, x, "kernel_shap", samples=94, **grid),
        "captum KernelShap": captum("KernelShap", n_samples=96),
        "shap KernelExplainer": shap_kernel(model, x, hidden, segments, 94, batch),
    }
    yield measured("KernelSHAP of 94 samples and both ends", 96, contenders)
    contenders = {
        "konkyo shapley_sampling": ours(model, x, "shapley_sampling", permutations=2, **grid),
        "captum ShapleyValueSampling": captum("ShapleyValueSampling", n_samples=2),
    }
    yield measured("Shapley value sampling of 2 orders", 98, contenders)
    contenders = {
        "konkyo feature_ablation": ours(model, x, "feature_ablation", **grid),
        "captum FeatureAblation": captum("FeatureAblation"),
    }
    yield measured("feature ablation", 50, contenders)
    contenders = {
        "konkyo partition": ours(model, x, "partition", evaluations=96, target=0),
        "shap PartitionExplainer": shap_partition(model, x, 96, batch),
    }
    title = f"resnet18, 224 x 224: partition of 96 evaluations, against 96 forwards in batches of {batch}"
    yield section(title, bare(model, x, 96, batch), contenders, min(rounds, 5))


def backwards(device: str, rounds: int) -> Iterator[dict[str, object]]:
    """Methods that change the way back, on a network whose every function is a module of its own, as captum needs."""
    from captum import attr

    model, x, forward = network("vgg11", device)
    plain = copy.deepcopy(model)  # captum puts hooks and rules on it
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    black = torch.zeros_like(x)

    def captum(kind: str, **options: object) -> Contender:
        return lambda: getattr(attr, kind)(plain).attribute(x.clone().requires_grad_(), target=0, **options)

    def noisy(kind: str) -> Contender:
        tunnel = attr.NoiseTunnel(attr.Saliency(plain))
        settings = {"nt_type": kind, "nt_samples": 16, "nt_samples_batch_size": 4, "stdevs": 0.5, "target": 0}
        return lambda: tunnel.attribute(x.clone().requires_grad_(), **settings)

    contenders = {
        'konkyo lrp, composite="epsilon"': ours(model, x, "lrp", target=0, composite="epsilon"),
        "captum LRP (epsilon)": captum("LRP"),
        "konkyo lrp": ours(model, x, "lrp", target=0),
        "konkyo deep_lift": ours(model, x, "deep_lift", target=0, baseline="zero"),
        "captum DeepLift": captum("DeepLift", baselines=black),
        "konkyo deconvnet": ours(model, x, "deconvnet", target=0),
        "captum Deconvolution": captum("Deconvolution"),
        "konkyo excitation_backprop": ours(model, x, "excitation_backprop", target=0),
    }
    yield section("vgg11: relevance and the like, down to the pixels", forward, contenders, rounds)
    contenders = {
        "konkyo square_grad, 16 samples": ours(model, x, "square_grad", target=0, samples=16),
        "captum NoiseTunnel(Saliency), smoothgrad_sq": noisy("smoothgrad_sq"),
    }
    title = "vgg11: squared noisy gradients, 16 samples, against 16 forwards in batches of 4"
    yield section(title, bare(model, x, 16, 4), contenders, min(rounds, 5))


def concepts(device: str, rounds: int) -> Iterator[dict[str, object]]:
    """Concepts of the classifier that ships, in images of scenes."""
    from sklearn.decomposition import NMF

    from konkyo.concepts import factorise, tcav
    from konkyo.concepts.factors import nonnegative_factors

    model = konkyo.load("konkyo/scenes-classifier", device=device)
    drawn = konkyo.data.scenes.Scenes(64, seed=3, objects=1)
    x = torch.stack([model.preprocess(scene.image) for scene in drawn]).to(device)
    layer = dict(model.module.named_modules())[model.layer(None, tuple(x.shape[1:])).name]

    def features() -> Tensor:
        held: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _module, _args, output: held.append(output))
        try:
            with torch.inference_mode():
                for part in x.split(16):
                    model.module(part)
        finally:
            handle.remove()
        return torch.cat(held).flatten(2).mT.reshape(-1, held[0].shape[1])

    def peer(values: Tensor, **options: object) -> tuple[Any, Any]:
        nmf = NMF(8, init="nndsvd", max_iter=200, **options)
        return nmf.fit_transform(values.cpu().numpy()), nmf.components_

    def forwards() -> None:
        with torch.inference_mode():
            for part in x.split(16):
                model.module(part)

    contenders: dict[str, Contender] = {
        "konkyo factorise": lambda: factorise(model, x, 8),
        "forwards + scikit-learn NMF": lambda: peer(features()),
    }
    title = "konkyo/scenes-classifier: 8 concepts of 64 images, against their forwards in batches of 16"
    yield section(title, forwards, contenders, min(rounds, 5))

    values = features().clone()
    values -= values.amin(0)
    contenders = {
        "scikit-learn NMF": lambda: peer(values),
        'scikit-learn NMF, solver "mu"': lambda: peer(values, solver="mu"),
    }
    shape = " x ".join(map(str, values.shape))
    title = f"8 non-negative factors of {shape} features, against konkyo's"
    result = section(title, lambda: nonnegative_factors(values, 8), contenders, min(rounds, 5))

    def missed(coefficients: Any, directions: Any) -> float:
        built = torch.as_tensor(coefficients) @ torch.as_tensor(directions)
        return float((values.cpu() - built.cpu()).norm() / values.norm())

    errors = [missed(*nonnegative_factors(values, 8)), missed(*peer(values)), missed(*peer(values, solver="mu"))]
    result["note"] = "Share of the features that is left out: {:.4f} by konkyo, {:.4f} and {:.4f} by its peers.".format(
        *errors
    )
    print(f"  {result['note']}")
    yield result

    shown, examples, others = x[:16], x[16:24], x[24:]
    with TemporaryDirectory() as folder:
        contenders = {
            "konkyo tcav, 10 sets and 99 random concepts": lambda: tcav(model, shown, examples, others, target=0),
            "captum TCAV, 10 sets": captum_tcav(model.module, layer, (shown, examples, others), folder),
        }
        title = "konkyo/scenes-classifier: TCAV, 8 images of a concept, 40 others, 16 to explain; against 64 forwards"
        yield section(title, forwards, contenders, min(rounds, 5))


def captum_tcav(module: nn.Module, layer: nn.Module, images: tuple[Tensor, Tensor, Tensor], folder: str) -> Contender:
    """Ten random sets, drawn as konkyo draws them; every directional derivative as konkyo's."""
    from captum.attr import LayerGradientXActivation
    from captum.concept import TCAV, Concept

    shown, examples, others = images
    name = next(n for n, m in module.named_modules() if m is layer)

    def concept(number: int, members: Tensor) -> Concept:
        return Concept(number, f"set{number}", torch.utils.data.DataLoader(list(members), batch_size=16))

    def call() -> object:
        own = concept(0, examples)
        draws = [others[torch.randperm(len(others))[: len(examples)]] for _ in range(10)]
        sets = [[own, concept(k + 1, members)] for k, members in enumerate(draws)]
        gradients = LayerGradientXActivation(module, layer, multiply_by_inputs=False)
        test = TCAV(module, [name], model_id="peer", layer_attr_method=gradients, save_path=folder)
        test.compute_cavs(sets, force_train=True)
        return test.interpret(shown, sets, target=0)

    return call


class Small(nn.Sequential):
    """Four convolutions, as the small networks of the study of gaze consistency have; maps of 8 x 8 for 64 x 64."""

    def __init__(self, head: nn.Module) -> None:
        def stage(inside: int, outside: int) -> list[nn.Module]:
            return [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]

        pool = nn.MaxPool2d(2)
        super().__init__(*stage(1, 32), pool, *stage(32, 64), pool, *stage(64, 128), pool, *stage(128, 256), head)


def step(model: nn.Module, x: Tensor, **options: object) -> Contender:
    """A step of training: forward, cross-entropy, where there are options gaze consistency, backward, Adam."""
    from konkyo.training.losses.consistency import ConsistencyLoss

    own = copy.deepcopy(model)
    optimiser = torch.optim.Adam(own.parameters(), lr=1e-4)
    gaze = ConsistencyLoss(own, x.shape[1:], **options) if options else None
    labels = (torch.arange(len(x)) % 4).to(x.device)

    def call() -> None:
        optimiser.zero_grad()
        logits = own(x)
        loss = nn.functional.cross_entropy(logits, labels)
        if gaze is not None:
            loss = loss + 3.0 * gaze(logits, labels)
        loss.backward()
        optimiser.step()

    call()
    return call


def training(device: str, rounds: int) -> Iterator[dict[str, object]]:
    """What the loss of gaze consistency adds to a step of training."""
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 4))
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(256 * 8 * 8, 64), nn.ReLU(), nn.Linear(64, 4))
    resnets = [torchvision.models.resnet18(weights=None, num_classes=4) for _ in range(2)]
    resnets[1].fc = nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 4))
    small, large = torch.randn(32, 1, 64, 64, device=device), torch.randn(16, 3, 112, 112, device=device)
    for name, model, x, earlier in (
        ("CNN of 4 convolutions, 64 x 64, batch 32, head of pooling + linear", Small(pooled), small, "10"),
        ("CNN of 4 convolutions, 64 x 64, batch 32, head of two layers", Small(hidden), small, "10"),
        ("resnet18, 112 x 112, batch 16, head of pooling + linear", resnets[0], large, "layer3"),
        ("resnet18, 112 x 112, batch 16, head of two layers", resnets[1], large, "layer3"),
    ):
        model = model.train().to(device)
        contenders = {"cross-entropy alone, once more": step(model, x)}
        if "linear" in name:
            contenders["konkyo ConsistencyLoss, closed form"] = step(model, x, mode="closed_form")
        contenders |= {
            "konkyo ConsistencyLoss, autograd": step(model, x, mode="autograd"),
            "konkyo ConsistencyLoss, detached": step(model, x, mode="detached"),
            "konkyo ConsistencyLoss, autograd, a block earlier": step(model, x, mode="autograd", layer=earlier),
            "konkyo ConsistencyLoss, auto, of another forward in eval mode": step(model, x, view="eval"),
        }
        title = f"{name}: a step with gaze consistency, against one of cross-entropy alone"
        yield section(title, step(model, x), contenders, max(rounds, 25))


def first_call(_device: str, _rounds: int) -> Iterator[dict[str, object]]:
    """Every network in processes of its own; see the module."""
    from first_call import section as measured

    yield from measured()


SECTIONS = {
    **{"costs": costs, "gradient": gradient, "transformer": transformer, "whole": whole, "path": path},
    **{"augmentation": augmentation, "ablation": ablation, "score": score, "detection": detection},
    **{"adaptive": adaptive, "adaptive_ratio": adaptive_ratio},
    **{"games": games, "backwards": backwards, "concepts": concepts},
    "measuring": measuring,
    "training": training,
    "first_call": first_call,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a part of it; repeatable")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    chosen = arguments.only or list(SECTIONS)
    before = json.loads(arguments.out.read_text()) if arguments.out.is_file() and arguments.only else {}
    kept = before.get("sections", {})
    machine = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "versions": {p: version(p) for p in PACKAGES},
    }
    for name in chosen:
        with quiet():
            kept[name] = list(SECTIONS[name](arguments.device, arguments.rounds))
        if before:  # the other sections' stays
            for part in kept[name]:
                part["machine"] = machine
        with replacing(arguments.out) as temporary:
            temporary.write_text(
                json.dumps({"machine": before.get("machine", machine), "sections": kept}, indent=1) + "\n"
            )
    print(f"\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
