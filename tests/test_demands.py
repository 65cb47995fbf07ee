"""What users of such libraries keep asking for, a small test each; `make demands` makes docs/demands.md of a run."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models as tv
from torchvision.models.resnet import BasicBlock
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from typer.testing import CliRunner

import konkyo
from helpers.demands import NOT_YET, described
from helpers.networks import InPlaceAfter, Returns, SmallResNet, images, seeded
from helpers.paths import DOCS
from konkyo.apps.cli import main as cli

calm = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
NUMBERS = {*range(1, 28)} - {7, 8, 9, 10}
"""The demands on explaining classifiers; the others are about detectors and segmenters."""


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    found, expected = found.detach().double(), expected.detach().double()
    scale = expected.abs().max()
    assert scale > 0
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


def at(network: nn.Module, module: nn.Module, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """(what the module puts out, the gradient of the class's logit there), in the module's own form."""
    caught: list[Tensor] = []

    def leaf(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    handle = module.register_forward_hook(leaf)
    output = network(x)
    handle.remove()
    score = getattr(output, "logits", output)[:, target].sum()
    return caught[-1].detach(), torch.autograd.grad(score, caught[-1])[0]


def counted(module: nn.Module) -> list[int]:
    """The batch sizes that go through the module from now on."""
    sizes: list[int] = []
    module.register_forward_hook(lambda _module, _args, output: sizes.append(len(output)))
    return sizes


# --- maps, layers, kinds of networks ---------------------------------------------------------------------------------


@pytest.mark.demand(1)
@pytest.mark.parametrize("kind", ["saturated", "zero gradient", "all negative", "not finite"])
def test_a_worthless_map_is_diagnosed(kind: str) -> None:
    """Blank, all-red and NaN maps: why?
    Every map has a diagnosis, and a bad one warns: saturated softmax, zero gradient, negative throughout, not finite,
    each with its cause and a way out. The signed values before the ReLU are kept."""

    class Gated(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stage2(self.stage1(self.stem(x)))
            shut = (x.mean() < 0.5).to(y)  # stage1 counts for the noise of a trace and not for a bright image
            return self.head(self.stage3(y * shut + x.mean((1, 2, 3), keepdim=True)).mean((2, 3)))

    network, x, layer, target = seeded(Gated()), images(2), None, konkyo.ClassTarget(1)
    with torch.no_grad():
        if kind == "saturated":
            network.head.bias[1], target = 60, konkyo.ClassTarget(1, "probability")
        elif kind == "zero gradient":
            x, layer = x + 5, "stage1"
        elif kind == "all negative":
            network.head.weight[1] = -network.head.weight[1].abs()
        else:
            x[0, 0, 3, 3] = torch.nan
    with pytest.warns(konkyo.KonkyoWarning) as warned:
        found = konkyo.explain(network, x, target=target, layer=layer)
    assert len(warned) == 1
    assert found.diagnosis[0].kind == kind
    assert found.diagnosis[0].message in str(warned[0].message)
    if kind == "saturated":
        assert 'ClassTarget(index, score="logit")' in found.diagnosis[0].message
        assert konkyo.explain(network, x, target=1, method="hires_cam").diagnosis[0].ok
    elif kind == "zero gradient":
        assert "layer='stage3'" in found.diagnosis[0].message
        assert konkyo.explain(network, x, target=1, layer="stage3", method="hires_cam").diagnosis[0].ok
    elif kind == "all negative":
        assert found.maps.abs().max() == 0
        assert found.signed.amax() < 0
        assert "hires_cam" in found.diagnosis[0].message
        assert konkyo.explain(network, x, target=1, method="hires_cam").diagnosis[0].ok
    else:
        assert found.diagnosis[1].kind != kind  # the other image does not suffer
        assert found.signed[1].isfinite().all()


def small_resnet() -> nn.Module:
    return seeded(tv.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5))


def small_vit() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48}
    return seeded(tv.VisionTransformer(**sizes, num_classes=5))


def small_swin(**more: Any) -> nn.Module:
    sizes = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": [4, 4]}
    return seeded(tv.SwinTransformer(**sizes, num_classes=5, **more))


@calm
@pytest.mark.demand(2)
@pytest.mark.parametrize(
    ("build", "side", "automatic", "typed"),
    [
        (small_resnet, 64, "layer4", "layer5"),
        (small_vit, 32, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_O"),
        (small_swin, 32, "permute", "permut"),
    ],
)
def test_the_layer_is_found(build: Callable[[], nn.Module], side: int, automatic: str, typed: str) -> None:
    """Which layer do I have to give?
    You need not: a trace finds the last grid that everything passes on its way to the decision. Names and modules are
    accepted, a misspelt name gets suggestions, and `konkyo layers` lists all with shapes."""
    network, x = build(), torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    found = konkyo.explain(network, x, target=1)
    assert found.layer == automatic
    assert found.signed.std() > 0
    for layer in (automatic, network.get_submodule(automatic)):
        assert torch.equal(konkyo.explain(network, x, target=1, layer=layer).signed, found.signed)
    with pytest.raises(konkyo.KonkyoError, match=rf"did you mean .*'{automatic}'"):
        konkyo.explain(network, x, layer=typed)


@pytest.mark.demand(2)
def test_the_layers_are_listed() -> None:
    outcome = CliRunner().invoke(cli.app, ["layers", "konkyo/scenes-classifier", "--json"])
    listed = json.loads(outcome.stdout)
    assert listed["automatic"] == "stage4"
    last = next(layer for layer in listed["layers"] if layer["name"] == "stage4")
    assert last["grid"] == [16, 16]
    assert last["used"]


@calm
@pytest.mark.demand(3)
@pytest.mark.parametrize("registers", [0, 4])
def test_a_vit_with_class_token_and_registers(registers: int) -> None:
    """Vision transformers: wrong axes, blank maps
    The grid is read from the patch embedding, class token and registers are set aside, images need not be square. A
    layer after the last attention, whose patches no longer count, is told to be blank, with one that works."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    network = seeded(VisionTransformer(**sizes, class_token=True, reg_tokens=registers, global_pool="token"))
    x = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)).double()
    found = konkyo.explain(network, x, target=1)
    a, g = at(network, network.get_submodule(found.layer), x, 1)
    assert a.shape == (2, 1 + registers + 24, 24)
    a, g = (t[:, 1 + registers :].mT.unflatten(2, (4, 6)) for t in (a, g))
    close(found.signed, (g.mean((2, 3), keepdim=True) * a).sum(1))
    for dead in ("norm", "blocks.1"):
        with pytest.warns(konkyo.KonkyoWarning, match="exactly 0"):
            message = konkyo.explain(network, x, target=1, layer=dead).diagnosis[0].message
        named = message.rpartition("layer=")[2].strip("'")
        assert konkyo.explain(network, x, target=1, layer=named).signed.std() > 0


@calm
@pytest.mark.demand(4)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_swin_in_channels_last(version: str) -> None:
    """Swin transformers (channels last, or tokens) and images that are not square
    Whether channels come first, last or as tokens is found by the trace; maps have the image's proportions."""
    v2 = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    network = small_swin(**v2 if version == "v2" else {})
    x = torch.randn(1, 3, 48, 96, generator=torch.Generator().manual_seed(1)).double()
    for layer, grid in (("features.1", (12, 24)), ("features.3", (6, 12))):  # 24 channels, as many as columns
        found = konkyo.explain(network, x, target=1, layer=layer)
        a, g = at(network, network.get_submodule(layer), x, 1)
        assert found.maps.shape == (1, *grid) == (1, *a.shape[1:3])
        close(found.signed, (g.mean((1, 2), keepdim=True) * a).sum(-1))


@calm
@pytest.mark.demand(4)
def test_a_swin_of_tokens() -> None:
    import transformers

    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2]}
    config = transformers.SwinConfig(**sizes, window_size=2, num_labels=5)
    network = seeded(transformers.SwinForImageClassification(config))
    x = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(1)).double()
    found = konkyo.explain(network, x, target=1)
    a, g = at(network, network.swin.layernorm, x, 1)
    assert a.shape == (1, 32, 24)
    close(found.signed, (g.mean(1, keepdim=True) * a).sum(-1).unflatten(1, (4, 8)))


@calm
@pytest.mark.demand(5)
@pytest.mark.parametrize("kind", ["dict", "ordered", "tuple", "list"])
def test_outputs_of_any_form(kind: str) -> None:
    """Outputs that are no tensor (ModelOutput, dict, tuple)
    The logits are found in tensors, tuples, lists and mappings, so in transformers' outputs too; `select=` says where
    they are otherwise."""
    network, x = seeded(Returns(kind)), images(2)
    expected = konkyo.explain(network.body, x, target=1)
    close(konkyo.explain(network, x, target=1).signed, expected.signed)
    if kind == "dict":
        doubled = konkyo.Model(network, select=lambda output: 2 * output["logits"])
        close(konkyo.explain(doubled, x, target=1).signed, 2 * expected.signed)


@calm
@pytest.mark.demand(5)
def test_an_output_of_transformers() -> None:
    import transformers

    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=5)
    network, x = seeded(transformers.ResNetForImageClassification(config)), images(1)
    found = konkyo.explain(network, x, target=1)
    a, g = at(network, network.resnet.encoder.stages[-1], x, 1)
    close(found.signed, (g.mean((2, 3), keepdim=True) * a).sum(1))
    close(found.scores, network(x).logits[:, 1])


@calm
@pytest.mark.demand(6)
@pytest.mark.parametrize("method", ["grad_cam", "score_cam", "ablation_cam", "rise"])
def test_a_network_with_other_inputs(method: str) -> None:
    """Several inputs and keyword arguments (CLIP, siamese and RGB-D networks)
    `konkyo.Model(network, call=...)` says how the network is run on images; what else it takes is expanded to their
    number there. The image is what is explained."""

    class ImageAndNumbers(SmallResNet):
        def forward(self, numbers: Tensor, *, image: Tensor) -> Tensor:
            return super().forward(image) * numbers

    network, numbers, x = seeded(ImageAndNumbers()), torch.tensor([[3.0, 1, 2, 1, 1]]).double(), images(2)
    model = konkyo.Model(network, call=lambda net, images: net(numbers.expand(len(images), -1), image=images))

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(numbers.expand(len(x), -1), image=x)

    options = {"masks": 6} if method == "rise" else {}
    for target in (0, 2):
        found = konkyo.explain(model, x, method=method, target=target, layer="stage2", **options)
        expected = konkyo.explain(Held(), x, method=method, target=target, layer="network.stage2", **options)
        close(found.signed, expected.signed)


# --- targets and batches ---------------------------------------------------------------------------------------------


@calm
@pytest.mark.demand(11)
def test_one_logit_has_two_sides() -> None:
    """Binary networks with one sigmoid output
    One logit has two classes, "positive" and "negative" (or your two names): either can be explained, and the signed
    map shows what speaks for each."""
    network, x = seeded(SmallResNet(classes=1)), images(4)
    with torch.no_grad():
        network.head.bias -= network(x).mean()
    z = network(x)[:, 0].detach()
    assert (z > 0).any()
    assert (z < 0).any()
    decided = konkyo.explain(network, x, method="hires_cam")
    assert decided.labels == tuple("positive" if value > 0 else "negative" for value in z)
    positive, negative = (konkyo.explain(network, x, method="hires_cam", target=t) for t in ("positive", "negative"))
    close(positive.scores, z)
    close(negative.signed, -positive.signed)
    a, g = at(network, network.stage3, x, 0)
    close(positive.signed, (g * a).sum(1))
    assert positive.signed.min() < 0 < positive.signed.max()
    named = konkyo.Model(network, classes=("benign", "malignant"))
    close(konkyo.explain(named, x, method="hires_cam", target="malignant").signed, positive.signed)


@calm
@pytest.mark.demand(12)
def test_many_classes_of_one_forward() -> None:
    """Many classes at once, multi-label networks
    `TopK(k)` and `Each(...)` give a row per class from a single forward; for classes that do not exclude each other
    (`multilabel=True`) probabilities are sigmoids."""
    network, x = seeded(SmallResNet(classes=12)), images(2)
    konkyo.explain(network, x)  # the trace
    before = counted(network)
    found = konkyo.explain(network, x, target=konkyo.TopK(10))
    each = konkyo.explain(network, x, target=konkyo.Each(0, 7, 11))
    assert before == [2, 2]
    assert found.maps.shape == (20, 4, 5)
    assert [t.index for t in found.targets] == network(x).topk(10).indices.flatten().tolist()
    for rows in (found, each):
        for row, target in enumerate(rows.targets):
            image = int(rows.image_index[row])
            close(rows.signed[row], konkyo.explain(network, x[image : image + 1], target=target.index).signed[0])
    model = konkyo.Model(network, multilabel=True)
    scores = konkyo.explain(model, x, method="rise", target=konkyo.Each(0, 7), masks=4).scores
    close(scores, network(x)[:, [0, 7]].sigmoid().flatten())


@calm
@pytest.mark.demand(13)
@pytest.mark.parametrize("method", ["grad_cam", "layer_cam", "eigen_cam", "score_cam", "ablation_cam", "saliency"])
def test_a_batch_equals_a_loop(method: str) -> None:
    """Batches: zeros after the first image, unclear targets
    A target is one for all images, or a list or tensor with one per image; a wrong length is an error. A batch gives
    what a loop gives."""
    network, x, targets = seeded(SmallResNet()), images(3), [1, 4, 0]
    batch = konkyo.explain(network, x, method=method, target=targets)
    for i, target in enumerate(targets):
        close(batch.signed[i], konkyo.explain(network, x[i : i + 1], method=method, target=target).signed[0])
    assert torch.equal(konkyo.explain(network, x, method=method, target=torch.tensor(targets)).signed, batch.signed)
    for wrong in ([1, 4], [1, 4, 0, 2]):
        with pytest.raises(konkyo.KonkyoError, match=rf"one entry per image: 3 expected, {len(wrong)} came"):
            konkyo.explain(network, x, method=method, target=wrong)


# --- what a call costs and leaves behind -----------------------------------------------------------------------------


@calm
@pytest.mark.demand(14)
@pytest.mark.parametrize("method", ["grad_cam", "score_cam", "ablation_cam", "guided_backprop"])
def test_nothing_is_left_behind(method: str) -> None:
    """Memory that grows in loops, hooks left behind
    Hooks live as long as the call, also when the model fails midway; results hold no graph, `.grad` is never written,
    and the number of tensors does not grow."""

    class Fails(SmallResNet):
        broken = False

        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            if self.broken:
                raise ZeroDivisionError("midway")
            return output

    network, x = seeded(Fails(deep_head=True), double=False), images(1, double=False)

    def tensors() -> int:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    found = konkyo.explain(network, x, method=method)
    assert not found.signed.requires_grad
    before = tensors()
    for _ in range(30):
        found = konkyo.explain(network, x, method=method)
    assert tensors() <= before
    network.broken = True
    with pytest.raises(konkyo.KonkyoError, match="ZeroDivisionError: midway") as error:
        konkyo.explain(network, x, method=method)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    del error
    for module in network.modules():
        assert not [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]
        assert "forward" not in vars(module)
    assert all(p.grad is None for p in network.parameters())


@calm
@pytest.mark.demand(15)
def test_ablation_replays_what_follows_the_layer() -> None:
    """Score-CAM and Ablation-CAM take too long
    Ablation replays only what follows the layer; `prune` leaves weak channels out, with a bound on what that moves;
    `budget=` caps the forwards, the strongest channels first, and `progress=` is told and can stop the run."""
    network, x = seeded(SmallResNet(deep_head=True)), images(1)
    konkyo.explain(network, x, method="ablation_cam", budget=2)  # the trace, and whether images depend on each other
    before, after = counted(network.stage2.conv1), counted(network.stage3.conv1)
    found = konkyo.explain(network, x, method="ablation_cam", target=1, layer="stage2")
    ran, replayed = sum(before), sum(after)
    a = at(network, network.stage2, x, 1)[0]
    assert ran <= 2  # the image itself, and once more for the record
    assert replayed >= a[0].flatten(1).any(1).sum()  # a variant per living channel
    y, drops = network(x)[0, 1].detach(), []
    for k in range(16):
        handle = network.stage2.register_forward_hook(
            lambda _m, _a, output, k=k: output * (torch.arange(16) != k)[:, None, None]
        )
        drops.append((y - network(x)[0, 1].detach()) / y.abs())
        handle.remove()
    close(found.signed[0], torch.einsum("c,chw->hw", torch.stack(drops), a[0]))


@calm
@pytest.mark.demand(15)
@pytest.mark.parametrize("prune", [0.3, 0.6])
def test_pruned_score_cam_stays_within_its_bound(prune: float) -> None:
    network, x = seeded(SmallResNet()), images(1)
    full = konkyo.explain(network, x, method="score_cam", target=1).signed
    sizes = counted(network)
    pruned = konkyo.explain(network, x, method="score_cam", target=1, prune=prune).signed
    largest = at(network, network.stage3, x, 1)[0][0].flatten(1).amax(1)
    stay = largest >= prune * largest.max()
    assert 1 < stay.sum() < len(stay)
    sizes.pop()  # of the line before
    assert sum(sizes) == 1 + stay.sum()  # the image itself, and a forward per channel
    moved = min((full - w * pruned).abs().max() for w in torch.linspace(0, 1, 1001)[1:])
    assert 0 < moved <= largest[~stay].max()


@calm
@pytest.mark.demand(15)
def test_a_budget_and_progress() -> None:
    network, x = seeded(SmallResNet()), images(1)
    konkyo.explain(network, x, method="score_cam", budget=2)
    sizes = counted(network)
    konkyo.explain(network, x, method="score_cam", target=1, budget=7)
    assert sum(sizes) == 1 + 7
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> bool:
        told.append((done, total))
        return True

    sizes.clear()
    found = konkyo.explain(network, x, method="rise", target=1, masks=500, progress=stop)
    assert len(told) == 1
    assert sum(sizes) == 1 + told[0][0] < told[0][1] == 500
    assert found.signed.isfinite().all()


@calm
@pytest.mark.demand(16)
@pytest.mark.parametrize("how", ["autocast", "precision", "bfloat16", "float16"])
@pytest.mark.parametrize("method", ["grad_cam", "xgrad_cam", "eigen_cam", "score_cam", "ablation_cam"])
def test_half_precision(method: str, how: str) -> None:
    """Half precision and autocast
    Half weights, a caller's autocast and `precision=` work; sums over maps are done in fp32, so they do not overflow
    where half precision ends at 65504."""

    class Loud(SmallResNet):
        def __init__(self) -> None:
            super().__init__()
            self.loud = nn.Hardtanh(0, 6e4)

        def forward(self, x: Tensor) -> Tensor:
            grid = self.loud(self.stage3(self.stage2(self.stage1(self.stem(x)))) * 4096)
            return self.head(grid.mean((2, 3)) / 4096)

    network, x = seeded(Loud(), double=False), images(1, double=False)
    settings: dict[str, Any] = {"method": method, "target": 1, "layer": "loud"}
    expected = konkyo.explain(network, x, **settings).signed
    grid = at(network, network.loud, x, 1)[0]
    assert grid.flatten(2).sum(2).max() > 65504 > grid.max()
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = konkyo.explain(network, x, **settings).signed
    elif how == "precision":
        found = konkyo.explain(network, x, **settings, precision="bf16").signed
    else:
        found = konkyo.explain(network.to(getattr(torch, how)), x, **settings).signed
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert not torch.equal(found, expected)  # half precision did reach the network
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.95


@calm
@pytest.mark.demand(17, missing="sharing a folder of images out over several devices")
def test_data_parallel_networks_and_their_checkpoints(tmp_path: Path) -> None:
    """DataParallel, and checkpoints whose names begin with `module.`
    Wrappers are taken off networks, and their prefixes off the names in weight files."""
    network, x = seeded(SmallResNet()), images(2)
    wrapped = konkyo.explain(nn.DataParallel(network), x, target=1)
    assert torch.equal(wrapped.signed, konkyo.explain(network, x, target=1).signed)
    assert wrapped.layer == "stage3"
    shipped = konkyo.load("konkyo/scenes-classifier")
    torch.save({"state_dict": nn.DataParallel(shipped.module).state_dict()}, tmp_path / "parallel.pth")
    assert konkyo.load("konkyo/scenes-classifier", weights=None).module.head.weight.ne(shipped.module.head.weight).any()
    loaded = konkyo.load("konkyo/scenes-classifier", weights=tmp_path / "parallel.pth")
    for name, tensor in shipped.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor)


@calm
@pytest.mark.demand(18)
@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
def test_compiled_networks(how: str) -> None:
    """torch.compile, TorchScript: hooks are ignored
    A compiled network is explained through the eager module that it was made from, and is compiled still afterwards. A
    TorchScript module, which has no such module, is refused with the way out."""
    network, x = seeded(SmallResNet(deep_head=True), double=False), images(1, double=False)
    settings = [{"method": m, "target": 1, "layer": "stage2"} for m in ("grad_cam", "ablation_cam")]
    expected = [konkyo.explain(network, x, **s).signed for s in settings]
    runs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            runs.append(1)
            return graph(*args)

        return run

    compiled = torch.compile(network, backend=backend) if how == "torch.compile" else network
    if how == "module.compile":
        network.compile(backend=backend)
    compiled(x)
    count = len(runs)
    assert count > 0
    for one, signed in zip(settings, expected, strict=True):
        close(konkyo.explain(compiled, x, **one).signed, signed)
    compiled(x)
    assert len(runs) == 2 * count


@pytest.mark.demand(18)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused() -> None:
    network, x = seeded(SmallResNet(), double=False), images(1, double=False)
    with pytest.raises(konkyo.KonkyoError, match=r"TorchScript.*give the eager module"):
        konkyo.explain(torch.jit.trace(network, x), x)


@calm
@pytest.mark.demand(19)
@pytest.mark.parametrize(
    "method", ["grad_cam", "grad_cam_pp", "layer_cam", "score_cam", "ablation_cam", "guided_backprop", "saliency"]
)
def test_in_place_relus(method: str) -> None:
    """In-place ReLUs break backward hooks
    Modules get no backward hooks: the network runs on a copy of what was captured. In place or not, the maps are the
    same, also of a layer whose output a ReLU then rewrites."""
    x = images(2)
    for build, layer in ((InPlaceAfter, "conv"), (SmallResNet, "stage2.bn1")):
        found = {}
        for inplace in (False, True):
            network = seeded(build())
            relus = [m for m in network.modules() if isinstance(m, nn.ReLU)]
            assert relus
            for relu in relus:
                relu.inplace = inplace
            found[inplace] = konkyo.explain(network, x, method=method, layer=layer, target=1).signed
        close(found[True], found[False])
    network = seeded(InPlaceAfter())
    a = network.conv(x).detach()
    assert a.min() < 0  # what the ReLU would have overwritten
    eigen = konkyo.explain(network, x, method="eigen_cam", layer="conv").signed.flatten(1)
    close(eigen.norm(dim=1), torch.linalg.matrix_norm(a.flatten(2), ord=2))


@calm
@pytest.mark.demand(20, missing="gradients through a part that the model itself runs under `torch.no_grad()`")
@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients", "ablation_cam", "guided_backprop"])
def test_frozen_weights_and_no_grad(method: str) -> None:
    """ "Does not require grad", "not used in the graph"
    Frozen weights, `no_grad` and `inference_mode` around the call change nothing: the activation is the leaf. A layer
    beside the way to the decision, and a `no_grad` of the model's own, are named as such."""
    network, x = seeded(SmallResNet()), images(1)
    network.beside = nn.Conv2d(3, 4, 3).double()
    network.stem.register_forward_hook(lambda _m, args, _o: (network.beside(args[0]), None)[1])
    settings: dict[str, Any] = {"method": method, "target": 1}
    expected = konkyo.explain(network, x, **settings).signed
    network.requires_grad_(False)
    for state in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with state():
            close(konkyo.explain(network, x, **settings).signed, expected)
    with pytest.warns(konkyo.KonkyoWarning, match=r"does not depend on this layer.*'stage3'"):
        konkyo.explain(network, x, target=1, layer="beside")


@pytest.mark.demand(20)
def test_a_backbone_under_its_own_no_grad() -> None:
    class Frozen(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                grid = self.stage3(self.stage2(self.stage1(self.stem(x))))
            return self.head(grid.mean((2, 3)))

    network, x = seeded(Frozen()), images(1)
    with pytest.warns(konkyo.KonkyoWarning, match=r"under torch\.no_grad\(\)"):
        assert konkyo.explain(network, x, target=1).diagnosis[0].kind == "zero gradient"
    without = konkyo.explain(network, x, method="cam", target=1)
    close(without.signed, konkyo.explain(seeded(SmallResNet()), x, method="cam", target=1).signed)


class Waves(nn.Module):
    """A classifier of signals, images or volumes."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.body = nn.Sequential(conv(2, 6, 3, 2, 1), nn.ReLU(), conv(6, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(2).mean(2))


@calm
@pytest.mark.demand(21)
@pytest.mark.parametrize("size", [(64,), (8, 10, 12)])
def test_signals_and_volumes(size: tuple[int, ...]) -> None:
    """Signals and volumes (ECG, CT, video)
    The methods are written for any number of grid axes: networks of one and three dimensions give maps of one and
    three, at the layer's or the input's resolution."""
    network = seeded(Waves(len(size)))
    x = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0)).double()
    names = ("grad_cam", "grad_cam_pp", "layer_cam", "eigen_cam", "score_cam", "ablation_cam", "saliency", "rise")
    found = {
        name: konkyo.explain(network, x, method=name, target=1, **{"masks": 20} if name == "rise" else {})
        for name in names
    }
    grid = tuple(s // 2 for s in size)
    a, g = at(network, network.body, x, 1)
    close(found["grad_cam"].signed, (g.flatten(2).mean(2).view(2, 8, *[1] * len(size)) * a).sum(1))
    for name, result in found.items():
        assert result.maps.shape == (2, *(size if name in ("saliency", "rise") else grid))
        assert result.maps.isfinite().all()
        assert result.at(size).shape == (2, *size)
    assert min(found["grad_cam"].overlay(0).size) > 50


@calm
@pytest.mark.demand(22)
@pytest.mark.parametrize("method", ["rise", "random_cam", "smooth_grad"])
def test_the_same_seed_gives_the_same_map(method: str, tmp_path: Path) -> None:
    """Results that change from run to run
    Every call has a `seed=`, which is recorded and saved with the maps; the global random state neither matters nor
    changes. Dropout and batch norm run in eval mode, and train mode is restored."""

    class Draws(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * torch.rand(())  # from the global random state, in eval mode too

    network = nn.Sequential(seeded(Draws(), double=False), nn.Dropout(0.5)).eval()
    x, few = images(1, double=False), {"rise": {"masks": 30}, "smooth_grad": {"samples": 5}}.get(method, {})

    def run(seed: int) -> konkyo.Explanation:
        torch.rand(3)  # another global state each time
        before = torch.get_rng_state()
        found = konkyo.explain(network, x, method=method, target=1, seed=seed, **few)
        assert torch.equal(torch.get_rng_state(), before)
        return found

    first = run(5)
    assert torch.equal(run(5).signed, first.signed)
    assert not torch.allclose(run(6).signed, first.signed)
    assert konkyo.Explanation.load(first.save(tmp_path / "map.npz")).seed == 5
    network.train()
    network[0].stage1.eval()
    statistics = network[0].stage3.bn1.running_mean.clone()
    assert torch.equal(run(5).signed, first.signed)
    assert [m.training for m in network.modules()].count(False) == len(list(network[0].stage1.modules()))
    assert torch.equal(network[0].stage3.bn1.running_mean, statistics)


@calm
@pytest.mark.demand(23)
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_grad_cam_pp_to_the_letter(scale: float) -> None:
    """Code that is not the paper's formula
    Each method is tested against a literal transcription of its paper, and deviations are options with a name, or told
    with their reasons. Here: Grad-CAM++ in loops, no epsilon, also for tiny gradients; Eigen-CAM with and without
    centring."""
    network, x = seeded(SmallResNet()), images(1)
    with torch.no_grad():
        network.head.weight.mul_(scale)
    found = konkyo.explain(network, x, method="grad_cam_pp", target=3)
    a, g = (t[0] for t in at(network, network.stage3, x, 3))
    expected = torch.zeros_like(a[0])
    for k in range(len(a)):
        weight = 0.0
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                if g[k, i, j] > 0:
                    alpha = g[k, i, j] ** 2 / (2 * g[k, i, j] ** 2 + a[k].sum() * g[k, i, j] ** 3)
                    weight += alpha * g[k, i, j]
        expected += weight * a[k]
    close(found.maps[0], expected.relu())


@calm
@pytest.mark.demand(23)
@pytest.mark.parametrize("centred", [False, True])
def test_a_deviation_is_a_named_option(centred: bool) -> None:
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, method="eigen_cam", centred=centred)
    assert found.options["centred"] is centred
    matrix = at(network, network.stage3, x, 0)[0][0].flatten(1).T
    matrix = matrix - matrix.mean(0) if centred else matrix
    component = matrix @ torch.linalg.svd(matrix, full_matrices=False)[2][0]
    close(found.signed.flatten().abs(), component.abs())


class Opaque(nn.Module):
    """What a runtime for exported networks looks like from PyTorch: NumPy in, NumPy out, no weights, no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.detach().cpu().numpy()
        bright = pixels[:, :, 4:12, 24:36].mean((1, 2, 3))  # all that it looks at
        return torch.from_numpy(np.stack([bright, -bright], axis=1))


@calm
@pytest.mark.demand(24, missing="export of a network together with its map; files of ONNX or TensorRT as models")
@pytest.mark.parametrize("method", ["rise", "occlusion", "score_cam", "ablation_cam"])
def test_a_network_that_cannot_be_looked_into(method: str) -> None:
    """Deployed networks (ONNX, TensorRT, quantised)
    Methods without gradients work on any callable in a module, at the input. A gradient method says that there is no
    gradient to have."""
    x = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)) + 1
    options = {"rise": {"masks": 2000}, "occlusion": {"window": 8, "stride": 4}}.get(method, {})
    found = konkyo.explain(Opaque(), x, method=method, target=0, layer="input", **options)
    assert found.maps.shape == (2, 32, 40)
    assert found.maps.flatten(1).std(1).min() > 0
    if method in ("rise", "occlusion"):  # the others weigh the three colours, and have no place of their own
        inside = torch.zeros(32, 40, dtype=torch.bool)
        inside[4:12, 24:36] = True
        for one in found.maps:
            assert one[inside].mean() > one[~inside].mean() + one[~inside].std()
    assert konkyo.explain(Opaque(), x, method="saliency", target=0).diagnosis[0].kind == "zero gradient"


@pytest.mark.demand(25)
def test_what_an_import_brings_along() -> None:
    """Dependencies (OpenCV and its system libraries, ttach, scikit-learn)
    None of them is used: torch, torchvision, NumPy, Pillow, safetensors, typer, rich and matplotlib are all, timm and
    transformers are extras. `import konkyo` and `konkyo --help` do not even load torch."""

    def loaded(program: str) -> set[str]:
        program += "\nimport sys; print('|'.join(sorted({n.partition('.')[0] for n in sys.modules})))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return set(done.stdout.splitlines()[-1].split("|"))

    unwanted = {"cv2", "ttach", "sklearn", "skimage", "captum", "pandas"}
    heavy = {"torch", "torchvision", "numpy", "matplotlib", "scipy", "timm", "transformers"}
    assert not loaded("import konkyo") & (unwanted | heavy)
    helped = (
        "import sys; sys.argv = ['konkyo', '--help']\nfrom konkyo.apps.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert not loaded(helped) & (unwanted | heavy)
    explained = loaded(
        "import konkyo\nfrom PIL import Image\nm = konkyo.load('konkyo/scenes-classifier')\n"
        "konkyo.explain(m, Image.new('RGB', (64, 64), 'red'), method='hires_cam').overlay(0)"
    )
    assert {"torch", "matplotlib"} <= explained
    assert not explained & unwanted


@calm
@pytest.mark.demand(26, missing="maps that can be differentiated, to train with")
def test_explaining_during_training_changes_nothing() -> None:
    """Maps during training, and as supervision
    Explaining between backward and step leaves weights, modes, `.grad`, batch statistics and the optimiser's state bit
    for bit as they were: a training with explanations ends where one without does."""

    def trained(explained: tuple[str, ...]) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = nn.Sequential(seeded(SmallResNet(), double=False), nn.Dropout(0.3)).train()
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        for step in range(4):
            x = images(4, double=False, seed=step)
            optimiser.zero_grad()
            functional.cross_entropy(network(x), torch.arange(4)).backward()
            for method in explained:
                assert konkyo.explain(network, x, method=method).signed.isfinite().all()
            optimiser.step()
        return network, optimiser

    with torch.random.fork_rng(devices=[]):
        (plain, expected), (network, found) = trained(()), trained(("grad_cam", "score_cam", "saliency"))
    assert all(m.training for m in network.modules())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    for a, b in zip(plain.parameters(), network.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
        for key, value in expected.state[a].items():
            assert torch.equal(found.state[b][key], value)


@calm
@pytest.mark.demand(27)
@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus_flat", "epsilon_gamma_box"])
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_relevance_is_kept(kind: str, composite: str) -> None:
    """Relevance propagation (LRP) for residual networks and vision transformers
    `lrp` has rules for sums, batch norms, attention, layer norms, gates and smooth activations. Without biases the
    map adds up to the score, in residual networks and transformers, too. A function without a rule is named."""
    network = (seeded(SmallResNet()) if kind == "resnet" else small_vit()).double()
    for name, tensor in network.state_dict().items():
        if name.endswith(("bias", "running_mean", "pos_embedding", "class_token")):
            tensor.zero_()
    image = images(1)[..., :32].abs()
    found = konkyo.explain(network, image, method="lrp", composite=composite, target=1)
    score = float(network(image)[0, 1].detach())
    assert float(found.signed.sum()) == pytest.approx(score, rel=0.05 if kind == "resnet" else 1e-3)
    ended = nn.Sequential(network, nn.Softmax(1))
    with pytest.raises(konkyo.NotApplicable, match="no relevance rule for Softmax's softmax"):
        konkyo.explain(ended, image, method="lrp", target=1)


# --- the page --------------------------------------------------------------------------------------------------------


def documented() -> dict[int, dict[str, Any]]:
    """What the tests of this file say of their demands."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in list(globals().items()):
        for marker in getattr(value, "pytestmark", []) if name.startswith("test_") else []:
            if marker.name == "demand":
                row = found.setdefault(marker.args[0], {"tests": set()})
                assert not (value.__doc__ and "answer" in row), f"two tests document demand {marker.args[0]}"
                row.update({k: v for k, v in described(value, marker).items() if k != "number"})
                row["tests"].add(name)
    return found


def test_every_demand_is_met_or_said_to_be_open() -> None:
    found = documented()
    assert {*found, *NOT_YET} == NUMBERS
    assert not {*found} & {*NOT_YET}
    assert all(row["demand"] and row["answer"].endswith(".") for row in found.values())


def test_the_page_is_of_these_tests(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--demands"):
        pytest.skip("the page is being made")
    page = json.loads((DOCS / "demands.json").read_text(encoding="utf-8"))
    made = {int(n): {**row, "tests": {t.partition("[")[0] for t in row["tests"]}} for n, row in page.items()}
    assert {n: (row.pop("passed"), row["demand"]) for n, row in made.items() if n in NOT_YET} == {
        n: (None, demand) for n, (demand, _) in NOT_YET.items()
    }
    assert {n: row for n, row in made.items() if n not in NOT_YET} == {
        n: {**row, "passed": True} for n, row in documented().items()
    }
