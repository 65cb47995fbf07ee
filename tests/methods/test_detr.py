"""Maps of a DETR's attention, against what transformers returns, loops, and gradients through the sampled values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.closeness import close
from helpers.detections import instances
from helpers.detectors_of_transformers import known, network, pictures
from helpers.networks import SmallResNet, seeded
from helpers.networks import images as noise

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
ALL = konkyo.Detections(threshold=0.0, top=2)
LOGITS = konkyo.Detections(threshold=0.0, top=2, quantity="logit")


def explained(module: nn.Module, method: str, target: Any = ALL, **options: Any) -> konkyo.Explanation:
    return konkyo.explain(
        module, pictures().to(next(module.parameters()).dtype), method=method, target=target, **options
    )


def eager(name: str, **more: Any) -> Any:
    """A network in double precision whose library's own forward returns its attentions."""
    module: Any = network(name, **more).double()
    module.set_attn_implementation("eager")
    return module


# --- cross-attention -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["detr", "conditional", "dab", "table"])
def test_the_map_is_the_cross_attention_that_transformers_returns(name: str) -> None:
    module = eager(name) if name != "dab" else network(name)  # which has no double precision
    with torch.no_grad():
        images = pictures().to(module.dtype)
        layers = module(pixel_values=images, output_attentions=True).cross_attentions
    assert len(layers) == 2
    fused = {
        "mean": lambda a, b: (a + b) / 2,
        "max": torch.maximum,
        "product": lambda a, b: (a / a.max()) * (b / b.max()),
    }
    found = explained(module, "detr_attention")
    first = explained(module, "detr_attention", decoder_layer=0, heads="max")
    together = {how: explained(module, "detr_attention", decoder_layer=None, decoder_fuse=how) for how in fused}
    for row, target in enumerate(instances(found)):
        maps = [layer[int(found.image_index[row]), :, target.index].view(-1, 2, 3) for layer in layers]
        close(found.signed[row], maps[1].mean(0).float())
        close(found.signed[row].sum(), torch.tensor(1.0))
        close(first.signed[row], maps[0].amax(0).float())
        for how, by_hand in fused.items():
            close(together[how].signed[row], by_hand(maps[0].mean(0), maps[1].mean(0)).float())
    assert (found.maps == found.signed).all()
    assert len({tuple(m.flatten().tolist()) for m in found.signed}) == 4


def sampled(module: nn.Module, attention: Any, image: Tensor, query: int) -> list[Tensor]:
    """What each cell's value counts for a query, per level (heads, h, w): the slope of what is read, by autograd."""
    seen: dict[str, Any] = {}

    def values(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        seen["values"] = output.detach().requires_grad_()
        return seen["values"].clone()

    hooks = [
        attention.value_proj.register_forward_hook(values),
        attention.output_proj.register_forward_pre_hook(lambda _m, args: seen.update(read=args[0])),
        attention.register_forward_pre_hook(lambda _m, _args, kwargs: seen.update(kwargs), with_kwargs=True),
    ]
    module(pixel_values=image)
    for hook in hooks:
        hook.remove()
    heads, width = attention.n_heads, attention.d_model // attention.n_heads
    of_heads = []
    for head in range(heads):
        part = slice(head * width, head * width + 1)  # every channel of a head is read alike
        (slope,) = torch.autograd.grad(seen["read"][0, query, part].sum(), seen["values"], retain_graph=True)
        of_heads.append(slope[0, :, head * width])
        assert torch.equal(slope.count_nonzero(), slope[0, :, head * width].count_nonzero())
    sizes = [tuple(map(int, size)) for size in seen["spatial_shapes_list"]]
    levels = torch.stack(of_heads).split([h * w for h, w in sizes], 1)
    return [level.unflatten(1, size) for level, size in zip(levels, sizes, strict=True)]


@pytest.mark.parametrize("name", ["rt", "rt 2", "deformable, two stages", "lw"])
def test_a_deformable_map_is_what_each_cell_counts_for_what_is_read(name: str) -> None:
    module = network(name).double()
    kind = "MultiscaleDeformableAttention"
    attentions = [m for n, m in module.named_modules() if type(m).__name__.endswith(kind) and "decoder" in n]
    assert len(attentions) == 2
    found = explained(module, "detr_attention")
    early = explained(module, "detr_attention", decoder_layer=0, heads="max")
    for result, attention in ((found, attentions[1]), (early, attentions[0])):
        for row, target in enumerate(instances(result)):
            image = pictures()[int(result.image_index[row])][None].double()
            levels = sampled(module, attention, image, target.index)
            size = levels[0].shape[1:]
            total = torch.zeros(len(levels[0]), *size, dtype=torch.double)
            for level in levels:
                share = level[0].numel() / size.numel()
                total += functional.interpolate(level[None], size=size, mode="bilinear")[0] * share
            expected = total.mean(0) if result is found else total.amax(0)
            assert expected.max() > 0
            torch.testing.assert_close(result.signed[row].double(), expected, rtol=1e-4, atol=1e-5)
    assert found.signed.shape[1:] == size
    assert (found.signed.flatten(1).sum(1) <= 1 + 1e-5).all()


def test_points_are_laid_on_cells_by_hand() -> None:
    """Two levels of 2 x 4 and 1 x 2 cells; one head, one query."""
    from konkyo.engine.attention_decoder import _splat

    def at(x: float, y: float, width: int, height: int) -> list[float]:
        """The centre of cell (0, 0) is (0, 0)."""
        return [(2 * x + 1) / width - 1, (2 * y + 1) / height - 1]

    fine = torch.tensor([at(1, 0, 4, 2), at(2.25, 0.5, 4, 2), at(-0.5, 0, 4, 2)])[None, None]
    coarse = torch.tensor([at(1, 0, 2, 1)])[None, None]
    weights = torch.tensor([0.2, 0.4, 0.1, 0.3])[None, None]
    found = _splat(weights, [(fine, (2, 4)), (coarse, (1, 2))])[0, 0]
    expected = torch.tensor([[0.05, 0.2, 0.15, 0.05], [0, 0, 0.15, 0.05]])  # half of the third point lies outside
    of_coarse = torch.tensor([0, 0.25, 0.75, 1]) * 0.3 / 4
    close(found, expected + of_coarse)


class Swapped(nn.Module):
    """A DETR whose candidates do not come in the order of its queries, or are the mean of two."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.detr, self.mixed = network("detr"), mixed


def test_the_query_of_a_candidate_is_found_whatever_the_order() -> None:
    plain = explained(network("detr"), "detr_attention")
    for mixed in (False, True):
        module = Swapped(mixed)
        inner = known(module.detr)

        def propose(network: Any, images: Tensor, inner: Any = inner) -> Tensor:
            output = inner.propose(network.detr, images)
            return (output + output.flip(1)) / 2 if network.mixed else output.flip(1)

        model = konkyo.Model(module, detector=replace(inner, propose=propose, layer="detr.model.backbone"))
        if mixed:
            with pytest.raises(konkyo.NotApplicable, match="a candidate is made of 2"):
                konkyo.explain(model, pictures(), method="detr_attention", target=ALL)
            continue
        found = konkyo.explain(model, pictures(), method="detr_attention", target=ALL)
        assert [t.index for t in instances(found)] == [19 - t.index for t in instances(plain)]
        close(found.signed, plain.signed)


def test_other_targets_of_a_candidate_read_the_same_query() -> None:
    module = network("detr")
    (one, *_) = instances(plain := explained(module, "detr_attention"))
    for target in (
        replace(one, quantity="x1"),
        konkyo.Against(one),
        konkyo.ContrastTarget(one, replace(one, label=(one.label + 1) % 5)),
    ):
        found = konkyo.explain(module, pictures()[:1], method="detr_attention", target=target)
        close(found.signed[0], plain.signed[0])
    other = instances(plain)[1]
    for target in (konkyo.ContrastTarget(one, other), lambda output: output[:, 0, 4]):
        with pytest.raises(konkyo.NotApplicable, match="a target that is a detection"):
            konkyo.explain(module, pictures()[:1], method="detr_attention", target=target)
    absent = replace(one, index=99, box=(-50.0, -50.0, -40.0, -40.0))
    for method in ("detr_attention", "mm_explainability"):
        assert (konkyo.explain(module, pictures()[:1], method=method, target=absent).signed == 0).all()


# --- the rollout ---------------------------------------------------------------------------------------------------


def evened(relevance: Tensor) -> Tensor:
    result = torch.eye(len(relevance), dtype=torch.double)
    for i, row in enumerate(relevance - torch.eye(len(relevance))):
        if row.sum() != 0:
            result[i] += row / row.sum()
    return result


def rolled(module: Any, image: Tensor, target: Any) -> Tensor:
    """The paper's rules for one image (1, ...) and one detection, with transformers' own attentions."""
    output = module(pixel_values=image, output_attentions=True)
    logits = output.logits[0, target.index]
    if isinstance(module.config.model_type, str) and "conditional" in module.config.model_type:
        score = logits[target.label]
    else:
        p = logits.softmax(0)[target.label]
        score = (p / (1 - p)).log()
    every = [*output.encoder_attentions, *output.decoder_attentions, *output.cross_attentions]
    slopes = torch.autograd.grad(score, every)
    cam = []
    for attention, slope in zip(every, slopes, strict=True):
        heads = attention.shape[1]
        cam.append(sum((attention[0, h] * slope[0, h]).clamp(min=0) for h in range(heads)).detach() / heads)
    count = len(output.encoder_attentions)
    encoder, rest = cam[:count], cam[count:]
    queries, crosses = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    R_ii = torch.eye(encoder[0].shape[0], dtype=torch.double)
    R_qq = torch.eye(queries[0].shape[0], dtype=torch.double)
    R_qi = torch.zeros(len(R_qq), len(R_ii), dtype=torch.double)
    for A in encoder:
        R_ii = R_ii + A @ R_ii
    for own, cross in zip(queries, crosses, strict=True):
        R_qq, R_qi = R_qq + own @ R_qq, R_qi + own @ R_qi
        R_qi = R_qi + evened(R_qq).T @ cross @ evened(R_ii)
    return R_qi[target.index].view(2, 3)


@pytest.mark.parametrize("name", ["detr", "conditional", "table"])
def test_the_rollout_follows_the_rules_of_the_paper(name: str) -> None:
    module = eager(name, encoder_layers=2)
    found = explained(module, "mm_explainability", LOGITS)
    for row, target in enumerate(instances(found)):
        image = pictures()[int(found.image_index[row])][None].double()
        expected = rolled(module, image, target)
        assert expected.max() > 0
        torch.testing.assert_close(found.signed[row].double(), expected, rtol=1e-4, atol=1e-6 * expected.max())


# --- where there is no place for them ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["detr_attention", "mm_explainability"])
def test_networks_without_such_a_decoder(method: str) -> None:
    with pytest.raises(konkyo.NotApplicable, match="this network is no detector"):
        konkyo.explain(seeded(SmallResNet()), noise(1), method=method)
    with pytest.raises(konkyo.NotApplicable, match="none that can be seen"):
        explained(network("yolos"), method)
    with pytest.raises(konkyo.NotApplicable, match="6 queries to as many cells"):
        explained(network("detr", num_queries=6), method)


def test_a_rollout_through_points_and_a_layer_that_there_is_not() -> None:
    with pytest.raises(konkyo.NotApplicable, match="is deformable"):
        explained(network("rt"), "mm_explainability")
    with pytest.raises(konkyo.KonkyoError, match="this decoder has 2 layers, 0 to 1; got decoder_layer=2"):
        explained(network("detr"), "detr_attention", decoder_layer=2)
    with pytest.raises(konkyo.NotApplicable, match="none that can be seen"):
        explained(network("rt 2", decoder_method="discrete"), "detr_attention")


def test_both_are_measured_beside_their_rivals_on_the_detector_that_ships() -> None:
    model = konkyo.load("konkyo/scenes-detr")
    result = konkyo.evaluate(model, "scenes:2", ["odam", "detr_attention"], ["ebpg@box"])
    assert list(result.methods) == ["odam", "detr_attention"]
    assert 0 < result.cell("detr_attention", "ebpg@box").value <= 1


def test_relevance_of_the_detector_that_ships() -> None:
    model = konkyo.load("konkyo/scenes-detr")
    image = konkyo.data.scenes.Scenes(1, size=64)[0].image
    maps = konkyo.explain(model, image, method="lrp", target=konkyo.Detections(top=1))
    assert [diagnosis.kind for diagnosis in maps.diagnosis] == ["ok"]
    with torch.no_grad():
        for name, tensor in model.module.state_dict().items():
            if tensor.is_floating_point() and name.endswith(("bias", "running_mean")):
                tensor.zero_()
    chosen: nn.Module = Chosen(model.module.model)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = konkyo.explain(chosen, x, method="lrp", target=2, epsilon=1e-9)
    close(found.signed.sum((1, 2)), chosen(x)[:, 2].detach(), 1e-3)


class Chosen(nn.Module):
    """The logits of the best of the encoder's cells, which an RT-DETR makes its queries of."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.detector(x).enc_topk_logits[:, 0]
        return logits
