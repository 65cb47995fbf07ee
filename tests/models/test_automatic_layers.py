"""The automatic layer is a cut whose cells are places of the image; maps at it are those computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_map
from torchvision.transforms import CenterCrop, Resize

import konkyo
from helpers.wired_networks import (
    Build,
    Lora,
    Wired,
    block,
    classifier,
    crops,
    ensemble,
    frames,
    head,
    latents,
    means,
    moved,
    pair,
    recurrent,
    rows_recurrent,
    shrinking,
    shuffled,
    siamese,
    through_vector,
    tower,
    transformer,
    unet,
)
from konkyo.engine.layer import Layer, main_tensor

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")

RGB = (3, 32, 32)


def weight_norm(module: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(module)


# name: (network, shape of its images, the automatic layer)
CUTS: dict[str, tuple[Build, tuple[int, ...], str]] = {
    "a siamese net, the reference first": (lambda: siamese(reference_last=False), RGB, "tower"),
    "a siamese net, the reference last": (lambda: siamese(reference_last=True), RGB, "tower#0"),
    "two pictures in the channels": (pair, (6, 32, 32), "tower#0+tower"),
    "columns read by an LSTM": (lambda: recurrent(nn.LSTM), (1, 32, 128), "features"),
    "columns read by a GRU": (lambda: recurrent(nn.GRU), (1, 32, 128), "features"),
    "columns read by an RNN": (lambda: recurrent(nn.RNN), (1, 32, 128), "features"),
    "16 latents": (lambda: latents(16, 1), (3, 64, 64), "patch"),
    "latents, as many as patches": (lambda: latents(64, 1), (3, 64, 64), "patch"),
    "latents that read three times": (lambda: latents(16, 3), (3, 64, 64), "patch"),
    "tokens, their mean": (transformer, RGB, "norm"),
    "a class token": (lambda: transformer(before=1, read="first"), RGB, "encoder.layers.1"),
    "registers": (lambda: transformer(before=4, read="first"), RGB, "encoder.layers.1"),
    "a token type table": (lambda: transformer(before=4, read="first", types=True), RGB, "encoder.layers.1"),
    "a text token before, three after": (lambda: transformer(before=1, after=3, read="last"), RGB, "patch"),
    "text before": (lambda: transformer(before=20, read="last"), RGB, "patch"),
    "text after": (lambda: transformer(after=9, read="last"), RGB, "patch"),
    "text, so that all tokens make a square": (lambda: transformer(before=4, after=16, read="last"), RGB, "patch"),
    "tokens (L, N, C)": (lambda: transformer(length_first=True), RGB, "norm"),
    "tokens (L, N, C) with a class token": (
        lambda: transformer(before=1, read="first", length_first=True),
        RGB,
        "encoder.layers.1",
    ),
    "a head with LoRA": (
        lambda: nn.Sequential(
            *(tower(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            Lora(nn.Linear(8, 4), nn.Linear(8, 2, bias=False), nn.Linear(2, 4, bias=False)),
        ),
        RGB,
        "0",
    ),
    "a convolution with LoRA": (
        lambda: nn.Sequential(
            block(3, 8, 2),
            Lora(nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 2, 1, bias=False), nn.Conv2d(2, 8, 1, bias=False)),
            *(nn.ReLU(), head()),
        ),
        RGB,
        "2",
    ),
    "ArcFace": (
        lambda: Wired(
            lambda net, x: (
                16 * functional.linear(functional.normalize(means(net.tower(x))), functional.normalize(net.w))
            ),
            tower=tower(),
            w=nn.Parameter(torch.randn(4, 8)),
        ),
        RGB,
        "tower",
    ),
    "a head that is an Identity": (
        lambda: nn.Sequential(block(3, 8, 2), block(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity()),
        RGB,
        "0",
    ),
    "weight_norm everywhere": (
        lambda: nn.Sequential(
            weight_norm(nn.Conv2d(3, 2, 4, 2, 1)),
            nn.ReLU(),
            weight_norm(nn.Conv2d(2, 2, 3, 1, 1)),
            nn.ReLU(),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), weight_norm(nn.Linear(2, 4))),
        ),
        RGB,
        "3",
    ),
    "a net that shrinks to one cell": (shrinking, RGB, "3"),
    "an ensemble": (lambda: ensemble(2), RGB, "members.0.1+members.1.1"),
    "an ensemble of probabilities": (
        lambda: ensemble(3, lambda outputs: outputs.softmax(2).mean(0).log()),
        RGB,
        "members.0.1+members.1.1+members.2.1",
    ),
    "features of all stages": (
        lambda: Wired(
            lambda net, x: net.fc(torch.cat([means(a := net.a(x)), means(net.b(a))], 1)),
            a=block(3, 8, 2),
            b=block(8, 8, 2),
            fc=nn.Linear(16, 4),
        ),
        RGB,
        "a",
    ),
    "a gate beside the features": (
        lambda: Wired(
            lambda net, x: net.fc(means(net.tower(x) * net.gate(means(net.small(x)))[:, :, None, None])),
            tower=tower(),
            small=block(3, 4, 4),
            gate=nn.Sequential(nn.Linear(4, 8), nn.Sigmoid()),
            fc=nn.Linear(8, 4),
        ),
        RGB,
        "tower+small",
    ),
    "one tower at two sizes": (
        lambda: Wired(
            lambda net, x: net.fc(means(net.tower(x))) + net.fc(means(net.tower(functional.avg_pool2d(x, 2)))),
            tower=tower(),
            fc=nn.Linear(8, 4),
        ),
        RGB,
        "tower#0+tower",
    ),
    "a U-Net that classifies": (lambda: unet(dense=False), (3, 64, 64), "up1"),
    "a grid made of a vector": (through_vector, RGB, "1"),
}


def holding(call: int) -> Callable[..., Any]:
    """A hook that holds constant what a call of a module puts out; -1: what all calls do."""
    count = 0

    def hold(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal count
        count += 1
        if call not in (-1, count - 1):
            return output
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output)

    return hold


def share_around(net: nn.Module, x: Tensor, layer: str, score: Callable[[Tensor], Tensor]) -> float:
    x = x.clone().requires_grad_()
    (whole,) = torch.autograd.grad(score(net(x)).sum(), x)
    with ExitStack() as undo:
        for name, _, call in (part.partition("#") for part in layer.split("+")):
            hook = holding(int(call) if call else -1)
            undo.callback(net.get_submodule(name).register_forward_hook(hook).remove)
        value = score(net(x)).sum()
    rest = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
    return 0.0 if rest is None else float(rest.abs().sum() / whole.abs().sum())


def grids(net: nn.Module, x: Tensor, layers: Sequence[Layer]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """-> what the layers put out, as grids; the tensors that do; the network's output."""
    kept: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}

    def keep(name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = main_tensor(output)
            assert tensor is not None
            kept[name].append(tensor)

        return hook

    with ExitStack() as undo:
        for name in kept:
            undo.callback(net.get_submodule(name).register_forward_hook(keep(name)).remove)
        output = net(x)
    raws = [kept[layer.name][layer.call] for layer in layers]
    return [layer.fold(raw) for layer, raw in zip(layers, raws, strict=True)], raws, output


def own_places(net: nn.Module, x: Tensor, layer: Layer) -> float:
    """Returns of how many cells, when the image is changed there, no cell but a neighbour changes more."""
    before = grids(net, x, [layer])[0][0][0]
    size, hits, source = x.shape[2:], [], torch.Generator().manual_seed(5)
    cells = list(product(*map(range, before.shape[1:])))
    for index in torch.randperm(len(cells), generator=source)[:16].tolist():
        cell, other = cells[index], x.clone()
        spans = zip(cell, before.shape[1:], size, strict=True)
        place = (..., *(slice(i * s // n, (i + 1) * s // n) for i, n, s in spans))
        other[place] += torch.randn(other[place].shape, generator=source) / 2
        change = (grids(net, other, [layer])[0][0][0] - before).square().sum(0)
        most = torch.unravel_index(change.argmax(), change.shape)
        hits.append(all(abs(int(a) - b) <= 1 for a, b in zip(most, cell, strict=True)))
    return sum(hits) / len(hits)


def built(build: Build) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def images(shape: Sequence[int], count: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(7))


def agree(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max()
    assert scale > 0
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-4)


def on_finest(maps: Sequence[Tensor]) -> Tensor:
    """Returns maps (N, *grid) at the size of the largest one."""
    size = max((tuple(m.shape[1:]) for m in maps), key=lambda s: s[0] * s[-1])
    if all(tuple(m.shape[1:]) == size for m in maps):
        return torch.stack(list(maps))
    return torch.stack([functional.interpolate(m[:, None], size, mode="bilinear")[:, 0] for m in maps])


@pytest.mark.parametrize("name", CUTS)
def test_the_automatic_layer_is_a_cut_of_places(name: str) -> None:
    build, shape, layer = CUTS[name]
    net, x = built(build), images(shape)
    found = konkyo.explain(net, x, target=1, method="hires_cam")
    assert found.layer == layer
    assert found.diagnosis[0].kind == "ok"
    assert share_around(net, x, layer, lambda output: output[:, 1]) < 0.01
    layers = konkyo.Model(net).automatic_layers(shape)
    assert min(own_places(net, x, part) for part in layers) >= 0.75
    features, raws, output = grids(net, x, layers)
    slopes = torch.autograd.grad(output[:, 1].sum(), raws)
    by_hand = [(f * part.fold(g)).sum(1) for f, g, part in zip(features, slopes, layers, strict=True)]
    agree(found.signed, on_finest([m.detach() for m in by_hand]).sum(0))


def enlarged_middle(x: Tensor) -> Tensor:
    """Returns the middle of pictures of 64 pixels, enlarged to their size."""
    return functional.interpolate(x[:, :, 16:48, 16:48], size=(64, 64))


def to_and_fro() -> nn.Module:
    """Tokens whose every second row runs backwards."""

    def run(net: Any, x: Tensor) -> Tensor:
        rows = [row.flip(-1) if index % 2 else row for index, row in enumerate(net.patch(x).unbind(2))]
        return net.fc(net.encoder(torch.stack(rows, 2).flatten(2).mT).mean(1))

    block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    return Wired(run, patch=nn.Conv2d(3, 16, 8, 8), encoder=encoder, fc=nn.Linear(16, 4))


def test_tokens_whose_rows_run_to_and_fro_are_no_picture() -> None:
    """Half of them lie where they should, which is not enough: the patches before are taken."""
    assert konkyo.explain(built(to_and_fro), images((3, 64, 64)), target=1).layer == "patch"


# Networks none of whose layers is a picture of the whole image.
PICTURELESS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "rows read by an LSTM": (rows_recurrent, (1, 16, 16)),
    "frames as a batch": (frames, (48, 32, 32)),
    "a mirrored picture": (lambda: moved(lambda x: x.flip(-1)), RGB),
    "a turned picture": (lambda: moved(lambda x: torch.rot90(x, 1, (2, 3))), RGB),
    "a transposed picture": (lambda: moved(lambda x: x.transpose(2, 3)), (3, 32, 48)),
    "a rolled picture": (lambda: moved(lambda x: x.roll((8, 8), (2, 3))), RGB),
    "patches in another order": (lambda: moved(shuffled), RGB),
    "frequencies": (lambda: moved(lambda x: torch.fft.fft2(x).abs().log1p()), RGB),
    "a crop": (lambda: crops([(8, 8)]), RGB),
    "the first corner": (lambda: moved(lambda x: x[:, :, :16, :16]), RGB),
    "a corner of a larger picture": (lambda: moved(lambda x: x[:, :, :32, :32]), (3, 64, 64)),
    "the middle, enlarged": (lambda: moved(enlarged_middle), (3, 64, 64)),
    "a picture turned by half": (lambda: moved(lambda x: x.flip((2, 3))), (3, 64, 64)),
    "five crops": (lambda: crops([(0, 0), (0, 16), (16, 0), (16, 16), (8, 8)]), RGB),
    "halves": (
        lambda: Wired(
            lambda net, x: net.fc(torch.cat([means(net.tower(x[..., :32])), means(net.tower(x[..., 32:]))], 1)),
            tower=tower(),
            fc=nn.Linear(16, 4),
        ),
        (3, 32, 64),
    ),
    "a vector": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Unflatten(1, (1, 8, 8)), block(1, 8), head()
        ),
        RGB,
    ),
}


@pytest.mark.parametrize("name", PICTURELESS)
def test_what_is_no_picture_of_the_image_is_no_layer(name: str) -> None:
    build, shape = PICTURELESS[name]
    with pytest.raises(konkyo.KonkyoError, match="no layer puts out a feature grid"):
        konkyo.explain(built(build), images(shape), target=1)


def dense_score(output: Tensor) -> Tensor:
    return output[:, 1].flatten(1).sum(1)


NO_CUTS: dict[str, tuple[Build, tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "a U-Net's skips": (lambda: unet(dense=True), (3, 64, 64), dense_score),
    "the picture's mean beside the features": (
        lambda: Wired(
            lambda net, x: net.fc(torch.cat([means(net.tower(x)), means(x)], 1)), tower=tower(), fc=nn.Linear(11, 4)
        ),
        RGB,
        lambda output: output[:, 1],
    ),
    "values beside the picture": (
        lambda: Wired(
            lambda net, x: net.fc(torch.cat([means(net.tower(x[:, :3])), net.values(means(x[:, 3:]))], 1)),
            tower=tower(),
            values=nn.Sequential(nn.Linear(2, 8), nn.ReLU()),
            fc=nn.Linear(16, 4),
        ),
        (5, 32, 32),
        lambda output: output[:, 1],
    ),
    "a mirror image through a second tower": (
        lambda: Wired(
            lambda net, x: net.fc(means(net.a(x))) + net.fc(means(net.b(x.flip(-1)))),
            a=tower(),
            b=tower(),
            fc=nn.Linear(8, 4),
        ),
        RGB,
        lambda output: output[:, 1],
    ),
    "the middle, enlarged, through a second tower": (
        lambda: Wired(
            lambda net, x: net.fc(means(net.a(x))) + net.fc(means(net.b(enlarged_middle(x)))),
            a=tower(),
            b=tower(),
            fc=nn.Linear(8, 4),
        ),
        (3, 64, 64),
        lambda output: output[:, 1],
    ),
    "nine members": (lambda: ensemble(9), RGB, lambda output: output[:, 1]),
}


@pytest.mark.parametrize("name", NO_CUTS)
def test_the_share_that_goes_around_is_told(name: str) -> None:
    build, shape, score = NO_CUTS[name]
    net, x = built(build), images(shape)
    found = konkyo.explain(net, x, target=score, method="hires_cam")
    assert found.diagnosis[0].kind == "not a cut"
    share = share_around(net, x, found.layer, score)
    assert share > 0.05
    assert f"{share:.0%}" in found.diagnosis[0].message


# --- several branches ------------------------------------------------------------------------------------------------

AT_BRANCHES = (
    *("grad_cam", "hires_cam", "layer_cam", "xgrad_cam", "grad_cam_pp", "eigen_cam", "eigen_grad_cam", "fem"),
    *("score_cam", "ablation_cam", "recipro_cam", "ig_odam", "odam", "shapley_cam"),
)
BRANCHED = ("an ensemble", "two pictures in the channels", "a gate beside the features", "one tower at two sizes")


@pytest.mark.parametrize("name", BRANCHED)
@pytest.mark.parametrize("method", AT_BRANCHES)
def test_a_map_at_branches_is_the_sum_of_their_maps(name: str, method: str) -> None:
    build, shape, layer = CUTS[name]
    net, x = built(build), images(shape, 2)
    model = konkyo.Model(net)
    found = konkyo.explain(model, x, target=1, method=method)
    assert found.layer == layer
    branches = [replace(branch, part=False) for branch in model.automatic_layers(shape)]
    maps = [konkyo.explain(model, x, target=1, method=method, layer=branch).signed for branch in branches]
    assert all(float(m.abs().max()) > 0 for m in maps)
    agree(found.signed, on_finest(maps).sum(0))


def test_relevance_at_branches() -> None:
    net, x = built(lambda: ensemble(2)), images(RGB)
    model = konkyo.Model(net)
    found = konkyo.explain(model, x, target=1, method="relevance_cam")
    branches = [replace(branch, part=False) for branch in model.automatic_layers(RGB)]
    maps = [konkyo.explain(model, x, target=1, method="relevance_cam", layer=branch).signed for branch in branches]
    agree(found.signed, on_finest(maps).sum(0))


# --- tokens (L, N, C) ------------------------------------------------------------------------------------------------

TOKEN_METHODS = (
    *(
        "grad_cam",
        "layer_cam",
        "eigen_cam",
        "score_cam",
        "ss_cam",
        "is_cam",
        "ablation_cam",
        "recipro_cam",
        "group_cam",
    ),
    *("opti_cam", "finer_cam", "shapley_cam", "smooth_grad_cam_pp", "integrated_grad_cam", "ig_odam", "zoom_cam"),
    *("attention_rollout", "transformer_attribution"),
)


@pytest.mark.parametrize("method", TOKEN_METHODS)
@pytest.mark.parametrize("read", ["mean", "first"])
def test_the_order_of_the_axes_of_tokens_changes_nothing(method: str, read: str) -> None:
    before = int(read == "first")
    net = built(lambda: transformer(before=before, read=read))
    turned = built(lambda: transformer(before=before, read=read, length_first=True))
    turned.load_state_dict(net.state_dict())
    maps = [konkyo.explain(n, images(RGB, 2), target=1, method=method).signed for n in (turned, net)]
    agree(*maps)


@pytest.mark.parametrize(
    ("layer", "before"),
    [("encoder.layers.1", 0), ("encoder.layers.1", 1), ("encoder.layers.2.norm1", 0), ("encoder", 1)],
)
def test_ablated_tokens_are_those_of_a_full_forward(layer: str, before: int) -> None:
    net, x = built(lambda: transformer(before=before, length_first=True)), images(RGB, 2)
    model = konkyo.Model(net)
    chosen = model.layer(layer, RGB)
    assert (chosen.batch_axis, chosen.prefix, chosen.tokens) == (1, before, (4, 4))

    def scores_without(channel: int | None) -> Tensor:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            other = output.clone()
            if channel is not None:
                other[before:, :, channel] = 0
            return other

        with torch.no_grad():
            handle = net.get_submodule(layer).register_forward_hook(hook)
            score: Tensor = net(x)[:, 1]
            handle.remove()
        return score

    whole = scores_without(None)
    drops = torch.stack([(whole - scores_without(c)) / whole.abs() for c in range(16)], 1)
    features = grids(net, x, [chosen])[0][0].detach()
    by_hand = torch.einsum("nc,nc...->n...", drops, features)
    agree(konkyo.explain(model, x, target=1, method="ablation_cam", layer=layer).signed, by_hand)


# --- named layers, and the prediction itself -------------------------------------------------------------------------


def heads(count: int) -> nn.Module:
    """A branch for every class."""
    return Wired(
        lambda net, x: torch.stack([branch(net.stem(x)).mean((1, 2, 3)) for branch in net.branches], 1),
        stem=block(3, 8),
        branches=nn.ModuleList(block(8, 4) for _ in range(count)),
    )


@pytest.mark.parametrize("target", range(3))
def test_a_branch_that_one_class_depends_on_can_be_named(target: int) -> None:
    net, x = built(lambda: heads(3)), images((3, 8, 8))
    features, raws, output = grids(net, x, [Layer(f"branches.{target}", None)])
    (slope,) = torch.autograd.grad(output[:, target].sum(), raws)
    by_hand = (slope.mean((2, 3), keepdim=True) * features[0]).sum(1).detach()
    agree(konkyo.explain(net, x, target=target, layer=f"branches.{target}").signed, by_hand)
    assert float(konkyo.explain(net, x, target=target).signed.abs().max()) > 0


def test_a_segmenter_is_explained_at_its_backbone_not_by_its_prediction() -> None:
    from torchvision.models import segmentation

    for build in (segmentation.deeplabv3_mobilenet_v3_large, segmentation.lraspp_mobilenet_v3_large):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            net = build(weights=None, weights_backbone=None, num_classes=5).eval()
            for module in net.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        x = images((3, 96, 128))
        found = konkyo.explain(net, x, target=lambda out: out[:, 3].sum((1, 2)))
        with torch.no_grad():
            own = functional.interpolate(net(x)["out"][:, 3:4], found.signed.shape[1:], mode="bilinear", antialias=True)
        correlation = torch.corrcoef(torch.stack([found.signed[0].flatten(), own.flatten()]))[0, 1]
        assert found.layer.startswith("backbone")
        assert abs(float(correlation)) < 0.9


def test_a_pyramid_gives_all_its_levels_whoever_names_it() -> None:
    from torchvision.models import detection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        sizes = {"min_size": 96, "max_size": 128}
        net = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7, score_thresh=0.0, **sizes)
        nn.init.normal_(net.head.classification_head.cls_logits.weight, std=0.3)
        nn.init.zeros_(net.head.classification_head.cls_logits.bias)
    net.eval()
    x = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    target = konkyo.Detections(threshold=0.02, top=1)
    maps = [
        konkyo.explain(net, x, method="odam", layer=layer, target=target).signed
        for layer in (None, "backbone", "backbone.fpn")
    ]
    agree(maps[1], maps[0])
    agree(maps[2], maps[0])


def test_layers_that_are_fused_are_no_weights() -> None:
    net = built(
        lambda: nn.Sequential(block(3, 8, 2), weight_norm(nn.Conv2d(8, 2, 4)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    found = konkyo.explain(net, images(RGB), target=1, method="zoom_cam")
    counts: list[int] = []
    for name in found.layer.split("+"):
        net.get_submodule(name).register_forward_hook(lambda _m, _i, output: counts.append(len(output)))
    net(images(RGB, 5))
    assert counts == [5] * len(found.layer.split("+"))


@pytest.mark.parametrize(("before", "after"), [(1, 3), (4, 0), (1, 20), (0, 9), (7, 7)])
def test_the_cells_of_a_language_model_are_image_tokens(before: int, after: int) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**small, image_size=64, patch_size=16),
        image_token_index=100,
        vision_feature_layer=-1,
        text_config=transformers.LlamaConfig(**small, num_key_value_heads=2, vocab_size=120, pad_token_id=0),
    )
    net = built(lambda: transformers.LlavaForConditionalGeneration(config))
    prompt = torch.tensor([[1] * before + [100] * 16 + [5] * after])

    def run(model: nn.Module, x: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=prompt.expand(len(x), -1), pixel_values=x).logits[:, -1]
        return logits

    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = konkyo.explain(konkyo.Model(net, call=run), x, method="hires_cam")
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        tensor = main_tensor(output)
        assert tensor is not None
        kept.append(tensor)

    net.get_submodule(found.layer).register_forward_hook(keep)
    score = run(net, x)[0].max()
    (gradient,) = torch.autograd.grad(score, kept[-1])
    evidence = (gradient * kept[-1]).reshape(-1, 32).sum(1).detach()
    first = {16: 0, 17: 1}.get(len(evidence), before)
    agree(found.signed[0], evidence[first : first + 16].reshape(4, 4))
    assert int((found.signed != 0).sum()) > 1


# --- the cost of looking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [None, "1"])
def test_the_first_call_at_a_size_looks_at_small_images(layer: str | None) -> None:
    net, pixels = built(classifier), list[int]()
    net[0].register_forward_hook(lambda _m, args, _o: pixels.append(args[0].numel()))
    x = images((3, 512, 512))
    konkyo.explain(net, x, target=1, layer=layer)
    first = sum(pixels)
    pixels.clear()
    konkyo.explain(net, x, target=1, layer=layer)
    assert sum(pixels) == x.numel()
    assert first <= 1.5 * x.numel()


def after(before: nn.Module) -> tuple[nn.Module, Tensor]:
    """(a network that begins so, an image of 256 pixels with a square at a third of its sides)"""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
    x = torch.zeros(1, 3, 256, 256)
    x[:, :, 72:88, 72:88] = 3
    return nn.Sequential(before, *convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval(), x


def test_a_crop_that_small_images_do_not_show_is_seen() -> None:
    """Images of 256 pixels are traced at 128, where the crop takes all: their grid has another size than expected."""
    network, x = after(CenterCrop(128))
    with pytest.raises(konkyo.KonkyoError, match="no layer puts out a feature grid"):
        konkyo.explain(network, x, target=1)


def test_a_picture_that_is_made_smaller_stays_where_it_is() -> None:
    network, x = after(Resize(200))
    found = konkyo.explain(network, x, target=1, method="hires_cam")
    change = (found.signed[0] - found.signed[0].median()).abs()
    rows, columns = (change > change.max() / 4).nonzero().T
    assert 0.25 < float(rows.float().mean() / len(change)) < 0.38
    assert 0.25 < float(columns.float().mean() / len(change)) < 0.38
