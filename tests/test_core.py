"""What holds for every model and method: the model comes back as it was, and awkward models work."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.networks import (
    Attention,
    InPlaceAfter,
    Returns,
    SmallResNet,
    TupleLayer,
    Twice,
    images,
    seeded,
)
from konkyo.engine.capture import capture
from konkyo.engine.forward import Pass
from konkyo.engine.layer import Layer
from konkyo.engine.probe import Probe

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
OPTIONS: dict[str, dict[str, Any]] = {
    "rise": {"masks": 6},
    "occlusion": {"window": 4, "stride": 4},
    "feature_ablation": {"count": 4, "segments": "grid"},
    "lime": {"samples": 4, "count": 4, "segments": "grid"},
    "kernel_shap": {"samples": 4, "count": 4, "segments": "grid"},
    "shapley_sampling": {"permutations": 1, "count": 4, "segments": "grid"},
    "sobol": {"grid": 2, "designs": 2},
    "hsic": {"grid": 2, "designs": 8},
    "partition": {"evaluations": 6},
    "ss_cam": {"samples": 2},
    "is_cam": {"steps": 2},
    "opti_cam": {"steps": 3},
    "integrated_gradients": {"steps": 3},
    "integrated_grad_cam": {"steps": 3},
    "smooth_grad": {"samples": 3},
    "var_grad": {"samples": 3},
    "smooth_grad_cam_pp": {"samples": 3},
    "guided_ig": {"steps": 3},
    "blur_ig": {"steps": 3},
    "gradient_shap": {"samples": 3},
    "square_grad": {"samples": 3},
}
OF_ATTENTION = {"attentions", "block_gradients", "reading", "queries"}  # test_attention.py and test_detr.py have these
ALL = [
    name
    for name, method in konkyo.methods().items()
    if not OF_ATTENTION & set(method.needs) and method.score != "similarity"  # those explain detections only
]


def run(network: nn.Module, x: Tensor, method: str, **more: Any) -> konkyo.Explanation:
    return konkyo.explain(network, x, method=method, **OPTIONS.get(method, {}), **more)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = expected.abs().max().clamp_min(1e-30)
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


# --- the model comes back as it was ----------------------------------------------------------------------------------


def state_of(network: nn.Module) -> dict[str, Any]:
    return {
        "modes": [m.training for m in network.modules()],
        "values": [t.clone() for t in network.state_dict().values()],
        "versions": [t._version for t in network.state_dict().values()],
        "grads": [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        "requires": [p.requires_grad for p in network.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in network.modules()
        ],
        "attributes": [sorted(m.__dict__) for m in network.modules()],
        "rng": torch.get_rng_state(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0, msg=key) if key != "attributes" else None
    assert before["attributes"] == after["attributes"]


@pytest.mark.parametrize("method", ALL)
def test_the_model_comes_back_as_it_was(method: str) -> None:
    network, x = seeded(SmallResNet(), double=False).train(), images(2, double=False)
    network.stage2.eval()  # a mixture of modes
    network(x).sum().backward()
    next(iter(network.parameters())).requires_grad_(False)
    before = state_of(network)
    run(network, x, method, target=1)
    assert_same(before, state_of(network))


@pytest.mark.parametrize("method", ["grad_cam", "score_cam", "ablation_cam", "integrated_gradients"])
@pytest.mark.parametrize("when", range(1, 6))
def test_an_exception_midway_leaves_the_model_untouched(method: str, when: int) -> None:
    class Fails(SmallResNet):
        calls, limit = 0, 10**9

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            features = self.stage3(self.stage2(self.stage1(self.stem(x))))
            if self.calls >= self.limit:
                raise ZeroDivisionError("midway")
            return self.head[2](self.head[1](self.head[0](features.mean((2, 3)))))

    network, x = seeded(Fails(deep_head=True), double=False).train(), images(2, double=False)
    run(network, x, "random_cam")
    network.calls = 0
    before = state_of(network)
    network.limit = when
    cause = None
    try:
        run(network, x, method, target=1, layer="stage2" if method != "score_cam" else None)
    except konkyo.KonkyoError as error:
        cause = error.__cause__
    assert isinstance(cause, ZeroDivisionError) if network.calls == when else network.calls < when
    before["attributes"] = after = state_of(network)["attributes"]
    assert all("forward" not in names for names in after)
    assert_same(before, state_of(network))


@pytest.mark.parametrize("method", ["grad_cam", "ablation_cam", "score_cam", "saliency"])
def test_no_tensor_or_hook_is_left_after_100_calls(method: str) -> None:
    network, x = seeded(SmallResNet(deep_head=True), double=False), images(1, double=False)

    def tensors() -> int:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    run(network, x, method)
    before, hooks = tensors(), state_of(network)["hooks"]
    for _ in range(100):
        run(network, x, method)
    assert tensors() <= before
    assert state_of(network)["hooks"] == hooks


def test_a_network_is_freed_although_it_was_traced() -> None:
    network = seeded(SmallResNet(), double=False)
    run(network, images(1, double=False), "grad_cam")
    reference = weakref.ref(network)
    del network
    gc.collect()
    assert reference() is None


# --- states of the caller and of the weights -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_frozen_weights_no_grad_and_inference_mode_change_nothing(method: str) -> None:
    network, x = seeded(SmallResNet()), images(2)
    expected = run(network, x, method, target=1).signed
    for p in network.parameters():
        p.requires_grad_(False)
    close(run(network, x, method, target=1).signed, expected)
    with torch.no_grad():
        close(run(network, x, method, target=1).signed, expected)
    with torch.inference_mode():
        made_there = x.clone()
        close(run(network, made_there, method, target=1).signed, expected)
    close(run(network, made_there, method, target=1).signed, expected)


@pytest.mark.parametrize("method", ALL)
def test_batch_equals_loop(method: str) -> None:
    network, x = seeded(SmallResNet()), images(3)
    batch = run(network, x, method, target=[1, 4, 1])
    for i, target in enumerate([1, 4, 1]):
        one = run(network, x[i : i + 1], method, target=target)
        close(batch.signed[i], one.signed[0])
        close(batch.scores[i], one.scores[0])


@pytest.mark.parametrize("deep_head", [False, True])
@pytest.mark.parametrize(
    "method", ["cam", "grad_cam", "layer_cam", "eigen_cam", "score_cam", "ablation_cam", "saliency", "rise"]
)
def test_autocast_and_half_weights(method: str, deep_head: bool) -> None:
    if method == "cam" and deep_head:
        pytest.skip("not defined there")
    network, x = seeded(SmallResNet(deep_head=deep_head), double=False), images(1, double=False)
    expected = run(network, x, method, target=1).signed
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = run(network, x, method, target=1).signed
    asked = run(network, x, method, target=1, precision="bf16").signed
    half = run(network.bfloat16(), x, method, target=1).signed
    for found in (under, asked, half):
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        correlation = torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]
        assert correlation > 0.9
    assert not torch.equal(under, expected)  # autocast did reach the network


def test_explaining_inside_autocast_leaves_the_caller_able_to_train() -> None:
    """Weights cast without a graph must not stay in the caller's autocast cache."""
    network, x = seeded(SmallResNet(), double=False), images(2, double=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(network, x, "grad_cam", target=1)
        run(network, x, "score_cam", target=1)
        network(x).float().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.stem.parameters())


@pytest.mark.parametrize("wrap", ["data_parallel", "compile"])
def test_wrapped_models(wrap: str) -> None:
    network, x = seeded(SmallResNet(), double=False), images(1, double=False)
    wrapped = nn.DataParallel(network) if wrap == "data_parallel" else torch.compile(network, backend="eager")
    close(run(wrapped, x, "grad_cam", target=1).signed, run(network, x, "grad_cam", target=1).signed)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused_with_the_way_out() -> None:
    network = seeded(SmallResNet(), double=False)
    with pytest.raises(konkyo.KonkyoError, match="eager module"):
        run(torch.jit.trace(network, images(1, double=False)), images(1, double=False), "grad_cam")


# --- awkward networks ------------------------------------------------------------------------------------------------


def by_hand(network: nn.Module, tail: Any, features: Tensor, label: int) -> Tensor:
    leaf = features.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(tail(leaf)[0, label], leaf)
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1)[0].detach()


def test_an_in_place_relu_right_after_the_layer() -> None:
    network, x = seeded(InPlaceAfter()), images(1)
    features = network.conv(x).detach()
    assert features.min() < 0
    expected = by_hand(network, lambda f: network.head((f.relu() + 0.5).mean((2, 3))), features, 1)
    close(run(network, x, "grad_cam", target=1, layer="conv").signed[0].double(), expected)
    close(run(network, x, "eigen_cam", layer="conv").signed.abs().amax(), run_eigen(features))


def run_eigen(features: Tensor) -> Tensor:
    u, s, _ = torch.linalg.svd(features[0].flatten(1).T, full_matrices=False)
    return (u[:, 0] * s[0]).abs().amax().float()


@pytest.mark.parametrize(("call", "name"), [(0, "shared#0"), (1, "shared#1"), (1, "shared")])
def test_a_layer_called_twice_in_one_pass(call: int, name: str) -> None:
    network, x = seeded(Twice()), images(1)
    first = network.shared(network.first(x).tanh()).detach()
    last = network.shared(first.tanh()).detach()
    tails = [
        lambda f: network.head(network.shared(f.tanh()).relu().mean((2, 3))),
        lambda f: network.head(f.relu().mean((2, 3))),
    ]
    features = (first, last)[call]
    close(
        run(network, x, "grad_cam", target=1, layer=name).signed[0].double(), by_hand(network, tails[call], features, 1)
    )
    weights = []
    with torch.no_grad():
        y = tails[call](features)[0, 1]
        for k in range(6):
            without = features.clone()
            without[:, k] = 0
            weights.append((y - tails[call](without)[0, 1]) / y.abs())
    expected = sum(w * a for w, a in zip(weights, features[0], strict=True))
    close(run(network, x, "ablation_cam", target=1, layer=name).signed[0].double(), expected)


def test_a_call_that_never_happens_is_an_error() -> None:
    with pytest.raises(konkyo.KonkyoError, match="called 2 times"):
        run(seeded(Twice()), images(1), "grad_cam", layer="shared#2")


@pytest.mark.filterwarnings("ignore:The first is explained")
@pytest.mark.parametrize("kind", ["dict", "ordered", "tuple", "list"])
@pytest.mark.parametrize("method", ["grad_cam", "ablation_cam", "score_cam"])
def test_dict_and_tuple_outputs(kind: str, method: str) -> None:
    network = seeded(Returns(kind))
    x = images(2)
    expected = run(network.body, x, method, target=1).signed
    close(run(network, x, method, target=1).signed, expected)


def test_dict_and_tuple_layers() -> None:
    network, x = seeded(TupleLayer()), images(1)
    first = network.pair(x)[0].detach()
    expected = by_hand(network, lambda f: network.head(network.named(f)["features"].mean((2, 3))), first, 2)
    close(run(network, x, "grad_cam", target=2, layer="pair").signed[0].double(), expected)
    assert run(network, x, "ablation_cam", target=2, layer="pair").maps.shape == (1, 16, 20)
    assert run(network, x, "grad_cam", target=2).layer == "named"


def test_an_output_without_logits_says_how_to_select_them() -> None:
    class Nothing(SmallResNet):
        def forward(self, x: Tensor) -> Any:
            return {"loss": None}

    with pytest.raises(konkyo.KonkyoError, match="select="):
        run(seeded(Nothing()), images(1), "grad_cam")


@pytest.mark.parametrize("method", ALL)
def test_one_channel_and_non_square_images(method: str) -> None:
    network, x = seeded(SmallResNet(channels=1)), images(2, channels=1)
    found = run(network, x, method, target=1)
    assert found.maps.shape[1:] in {(4, 5), (32, 40)}
    assert found.at((32, 40)).shape == (2, 32, 40)
    assert found.overlay(0).size == (40, 32)


@pytest.mark.parametrize(("conv", "shape"), [(nn.Conv1d, (2, 3, 64)), (nn.Conv3d, (2, 3, 8, 8, 8))])
@pytest.mark.parametrize("method", [m for m in ALL if m not in ("rise", "cameras")])
def test_signals_and_volumes(conv: Any, shape: tuple[int, ...], method: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(conv(3, 6, 3, 2, 1), nn.ReLU()), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).flatten(2).mean(2))

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    found = run(seeded(Net()), x, method, target=1)
    assert found.maps.ndim == len(shape) - 1
    assert found.maps.isfinite().all()


@pytest.mark.parametrize("prefix", [1, 3])
def test_tokens_become_a_grid(prefix: int) -> None:
    """Grad-CAM at the block's norm, by hand: tokens minus the prefix, as a (4, 5) grid."""
    network, x = seeded(Attention(prefix)), images(2)
    assert run(network, x, "grad_cam", target=1).layer == "patch"  # past the norm goes what its block adds to
    found = run(network, x, "grad_cam", target=1, layer="norm")
    tokens: list[Tensor] = []

    def hook(_m: nn.Module, _a: Any, out: Tensor) -> Tensor:
        tokens.append(out.detach().requires_grad_())
        return tokens[-1]

    handle = network.norm.register_forward_hook(hook)
    score = network(x)[:, 1].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, tokens[0])
    a, g = (t[:, prefix:].mT.reshape(2, 12, 4, 5) for t in (tokens[0].detach(), gradient))
    close(found.signed.double(), (g.mean((2, 3), keepdim=True) * a).sum(1))


def test_ablating_tokens_keeps_the_prefix() -> None:
    network, x = seeded(Attention(2)), images(1)
    found = run(network, x, "ablation_cam", target=1, layer="norm")
    with torch.no_grad():
        y, weights = network(x)[0, 1], []
        kept: list[Tensor] = []
        for k in range(12):

            def zero(_m: nn.Module, _a: Any, out: Tensor, k: int = k) -> Tensor:
                kept.append(out.clone())
                out = out.clone()
                out[:, 2:, k] = 0
                return out

            handle = network.norm.register_forward_hook(zero)
            weights.append((y - network(x)[0, 1]) / y.abs())
            handle.remove()
    grid = kept[0][0, 2:].T.reshape(12, 4, 5)
    close(found.signed[0].double(), sum(w * a for w, a in zip(weights, grid, strict=True)))


# --- what is shared --------------------------------------------------------------------------------------------------


def counted(network: nn.Module) -> list[int]:
    counts: list[int] = []
    network.register_forward_hook(lambda _m, _a, out: counts.append(len(out)))
    return counts


def test_many_targets_and_methods_share_one_forward() -> None:
    network, x = seeded(SmallResNet()), images(2)
    run(network, x, "grad_cam")  # the trace
    counts = counted(network)
    found = konkyo.compare(
        network, x, ["grad_cam", "grad_cam_pp", "layer_cam", "eigen_cam", "cam", "ablation_cam"], target=konkyo.TopK(4)
    )
    assert counts == [2]
    assert all(len(e) == 8 for e in found.values())
    assert found["grad_cam"].image_index.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    for row, target in enumerate(found["grad_cam"].targets):
        image = row // 4
        one = run(network, x[image : image + 1], "grad_cam", target=target.index)
        close(found["grad_cam"].signed[row], one.signed[0])
    ranked = network(x).topk(4).indices.flatten().tolist()
    assert [t.index for t in found["grad_cam"].targets] == ranked


def test_a_method_that_needs_no_gradient_causes_no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = seeded(SmallResNet()), images(1)
    run(network, x, "random_cam")
    monkeypatch.setattr(torch.autograd, "grad", lambda *_a, **_k: pytest.fail("a backward was run"))
    for method in ("eigen_cam", "random_cam", "score_cam", "rise"):
        run(network, x, method, target=1)


def test_the_part_before_the_layer_runs_without_a_graph() -> None:
    network, x = seeded(SmallResNet()), images(1)
    required: dict[str, bool] = {}
    for name in ("stem", "stage1", "stage2", "stage3"):
        getattr(network, name).register_forward_hook(
            lambda _m, _a, out, name=name: required.__setitem__(name, out.requires_grad)
        )
    model = konkyo.Model(network)
    layer = model.layer("stage2", x.shape[1:])
    Pass(model, x, [layer], differentiable=[layer])
    # Hooks on the layer itself see what it hands on, as those of transformers that collect hidden states must.
    assert required == {"stem": False, "stage1": False, "stage2": True, "stage3": True}


def test_replay_runs_only_what_follows() -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(1)
    run(network, x, "ablation_cam", budget=2)
    sizes: dict[str, list[int]] = {name: [] for name in ("stem", "stage1", "stage2", "stage3")}
    for name, list_ in sizes.items():
        module = getattr(network, name)
        inner = module[0] if name == "stem" else module.conv1
        inner.register_forward_hook(lambda _m, _a, out, list_=list_: list_.append(len(out)))
    run(network, x, "ablation_cam", target=1, layer="stage2")
    assert sizes["stem"] == sizes["stage1"] == sizes["stage2"] == [1, 1]  # the pass and the recording


@pytest.mark.parametrize("dead", [0, 5])
def test_ablation_leaves_out_channels_that_are_zero_already(dead: int) -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(1)
    with torch.no_grad():
        network.stage2.bn2.bias[:dead] = -1e3
        channels = network.stage2(network.stage1(network.stem(x)))[0]
    run(network, x, "ablation_cam", budget=2)
    sizes: list[int] = []
    network.stage3.conv1.register_forward_hook(lambda _m, _a, out: sizes.append(len(out)))
    found = run(network, x, "ablation_cam", target=1, layer="stage2")
    alive = channels.flatten(1).any(1).sum().item()
    assert alive <= 16 - dead
    assert sum(sizes) == 1 + 1 + 3 + alive  # the pass, the recording, the check of one and two, and the variants
    assert found.signed.isfinite().all()


# --- targets ---------------------------------------------------------------------------------------------------------


def named() -> konkyo.Model:
    return konkyo.Model(seeded(SmallResNet()), classes=("cat", "dog", "fox", "owl", "dog"))


def test_targets_in_every_form_agree() -> None:
    model, x = named(), images(2)
    expected = konkyo.explain(model, x, target=2).signed
    for target in (
        *("fox", "FOX", [2, 2], ["fox", 2], (2, 2), torch.tensor([2, 2])),
        *(konkyo.ClassTarget(2), [konkyo.ClassTarget(2)] * 2, lambda out: out[:, 2], konkyo.Each("fox")),
    ):
        close(konkyo.explain(model, x, target=target).signed, expected)
    both = konkyo.explain(model, x, target=konkyo.Each("owl", "fox"))
    close(both.signed[1::2], expected)
    assert both.labels == ("owl", "fox") * 2


def test_the_default_target_is_the_top_class() -> None:
    model, x = named(), images(3)
    found = konkyo.explain(model, x)
    output = model(x)
    assert [t.index for t in found.targets] == output.argmax(1).tolist()
    close(found.scores.double(), output.amax(1).detach())


def test_probability_and_contrast_targets() -> None:
    model, x = named(), images(1)
    a, b = konkyo.ClassTarget(1), konkyo.ClassTarget(3)
    difference = konkyo.explain(model, x, target=konkyo.ContrastTarget(a, b)).signed
    close(difference, konkyo.explain(model, x, target=1).signed - konkyo.explain(model, x, target=3).signed)
    probable = konkyo.explain(model, x, target=konkyo.ClassTarget(1, score="probability"))
    close(probable.scores.double(), model(x).softmax(1)[:, 1].detach())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([1], "2 expected, 1 came"),
        ([1, 2, 3], "2 expected, 3 came"),
        ("fex", "did you mean 'fox'"),
        ("dog", r"classes \[1, 4\]"),
        (99, "5 classes"),
        (-1, "5 classes"),
        (konkyo.TopK(6), "5 classes"),
        (3.5, "3.5"),
        (lambda out: out.sum(), "one score per image"),
        ([konkyo.TopK(1), 1], "TopK"),
    ],
)
def test_wrong_targets_are_named(target: Any, message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(named(), images(2), target=target)


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("stage4", "did you mean 'stage"),
        ("head", "no feature grid"),
        ("pool", "only passes its input on"),
        ([], "no layer"),
        (nn.Linear(2, 2), "not part of"),
        ("stage3#x", "a number"),
    ],
)
def test_wrong_layers_are_named(layer: Any, message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        run(seeded(SmallResNet()), images(1), "grad_cam", layer=layer)


def test_a_layer_by_name_by_module_and_automatic_agree() -> None:
    network, x = seeded(SmallResNet()), images(1)
    expected = run(network, x, "grad_cam").signed
    close(run(network, x, "grad_cam", layer="stage3").signed, expected)
    close(run(network, x, "grad_cam", layer=network.stage3).signed, expected)


@pytest.mark.parametrize("layer", ["out_norm", "mlp"])
def test_a_layer_whose_map_is_blank_is_told_with_one_that_works(layer: str) -> None:
    network, x = seeded(Attention()), images(1)
    for method, kind in (("grad_cam", "zero gradient"), ("layer_cam", "zero gradient"), ("ablation_cam", "constant")):
        diagnosis = run(network, x, method, layer=layer).diagnosis[0]
        assert diagnosis.kind == kind
        assert "'patch'" in diagnosis.message
    assert run(network, x, "eigen_cam", layer=layer).diagnosis[0].ok  # needs no gradient: not blank


def test_the_input_is_a_layer() -> None:
    network, x = seeded(SmallResNet()), images(1)
    close(
        run(network, x, "hires_cam", target=1, layer="input").signed,
        run(network, x, "input_x_gradient", target=1).signed,
    )
    with pytest.raises(konkyo.KonkyoError, match="feature layer"):
        run(network, x, "cam", layer="input")


# --- diagnosis -------------------------------------------------------------------------------------------------------


def diagnosed(network: nn.Module, x: Tensor, **more: Any) -> konkyo.Diagnosis:
    with pytest.warns(konkyo.KonkyoWarning) as caught:
        found = konkyo.explain(network, x, **more)
    assert len(caught) == 1  # once a call
    assert caught[0].filename == __file__
    bad = [d for d in found.diagnosis if not d.ok]
    assert bad
    return bad[0]


def test_diagnosis_of_nan() -> None:
    network, x = seeded(SmallResNet()), images(2)
    x[1, 0, 3, 3] = torch.nan
    found = diagnosed(network, x, target=1)
    assert found.kind == "not finite"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = konkyo.explain(network, x, target=1).diagnosis
    assert both[0].kind != "not finite"


def test_diagnosis_of_a_zero_gradient_names_a_layer_that_works() -> None:
    class Gated(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stage2(self.stage1(self.stem(x)))
            gate = (x.mean() > 5).to(y)  # nothing of stage1 reaches the head for ordinary images
            return self.head(self.stage3(y * gate + x.mean((1, 2, 3), keepdim=True)).mean((2, 3)))

    network = seeded(Gated())
    found = diagnosed(network, images(1) * 1e-3, target=1, layer=Layer("stage1", network.stage1))
    assert found.kind == "zero gradient"
    assert "stage3" in found.message


def test_diagnosis_of_all_negative_keeps_the_signed_map() -> None:
    network, x = seeded(SmallResNet()), images(1)
    with torch.no_grad():
        network.head.weight[1] = -network.head.weight[1].abs()
    assert diagnosed(network, x, target=1).kind == "all negative"
    found = run(network, x, "grad_cam", target=1)
    assert found.maps.abs().max() == 0
    assert found.signed.min() < 0
    assert found.unit().isfinite().all()


def test_diagnosis_of_a_constant_map() -> None:
    network, x = seeded(SmallResNet()), images(1)
    with torch.no_grad():
        network.stage3.bn2.weight.zero_()
        network.stage3.shortcut.weight.zero_()
        network.stage3.shortcut.bias.fill_(3.0)
    assert diagnosed(network, x, target=1, method="eigen_cam").kind == "constant"


def test_diagnosis_of_saturation_recommends_the_logit() -> None:
    network, x = seeded(SmallResNet()), images(1)
    with torch.no_grad():
        network.head.bias[1] = 60.0
    found = diagnosed(network, x, target=konkyo.ClassTarget(1, score="probability"))
    assert found.kind == "saturated"
    assert 'score="logit"' in found.message


def test_good_maps_are_said_to_be_good() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert konkyo.explain(seeded(SmallResNet()), images(1), method="hires_cam").diagnosis == (
            konkyo.Diagnosis("ok"),
        )


# --- @method ---------------------------------------------------------------------------------------------------------


def test_a_users_method_is_a_function_of_what_it_names() -> None:
    from konkyo.methods.base import METHODS

    try:

        @konkyo.method(rectified=True)
        def peak_cam(activations: Tensor, gradients: Tensor, *, sharpness: float = 1.0) -> Tensor:
            """Channels weighted by their largest gradient."""
            return (gradients.amax((2, 3), keepdim=True) ** sharpness * activations).sum(1)

        found = run(seeded(SmallResNet()), images(1), "peak_cam", target=1, sharpness=2.0)
        assert found.options == {"sharpness": 2.0}
        assert peak_cam.summary == "Channels weighted by their largest gradient."
        with pytest.raises(konkyo.KonkyoError, match="did you mean 'sharpness'"):
            run(seeded(SmallResNet()), images(1), "peak_cam", sharpnes=2.0)
    finally:
        METHODS.pop("peak_cam", None)


def test_a_need_that_nothing_offers_fails_at_registration() -> None:
    with pytest.raises(
        konkyo.KonkyoError, match=r"did you mean 'activations'.*On offer: inputs, output, .*score, activations"
    ):

        @konkyo.method
        def broken(activation: Tensor) -> Tensor:
            """Never runs."""
            return activation


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(konkyo.KonkyoError, match="registered already"):

        @konkyo.method
        def grad_cam(activations: Tensor) -> Tensor:
            """Another Grad-CAM."""
            return activations


def test_unknown_methods_and_wrong_images_are_named() -> None:
    network, x = seeded(SmallResNet()), images(1)
    with pytest.raises(konkyo.KonkyoError, match="did you mean 'grad_cam'"):
        konkyo.explain(network, x, method="gradcam")
    with pytest.raises(konkyo.KonkyoError, match="floating tensor"):
        konkyo.explain(network, (x * 255).byte())
    with pytest.raises(konkyo.KonkyoError, match="N >= 1"):
        konkyo.explain(network, x[:0])
    with pytest.raises(konkyo.KonkyoError, match="empty list"):
        konkyo.explain(network, [])
    with pytest.raises(konkyo.KonkyoError, match="preprocess="):
        konkyo.explain(network, "cat.jpg")
    with pytest.raises(konkyo.KonkyoError, match="fp32"):
        konkyo.explain(network, x, precision="int8")
    with pytest.raises(konkyo.KonkyoError, match="a model is"):
        konkyo.explain("resnet", x)


def test_probe_refuses_ambiguous_variants() -> None:
    network, x = seeded(SmallResNet()), images(1)
    model = konkyo.Model(network)
    layer = model.layer(None, x.shape[1:])
    probe = Probe(Pass(model, x, [layer]), [konkyo.ClassTarget(1)], layer)
    with pytest.raises(konkyo.KonkyoError, match="exactly one"):
        probe.rescore(3)


def test_capture_restores_the_grad_mode() -> None:
    network, x = seeded(SmallResNet()), images(1)
    layer = Layer("stage2", network.stage2)
    with torch.no_grad():
        with capture([layer], leaves=[layer]):
            network(x)
        assert not torch.is_grad_enabled()


# --- found by review -------------------------------------------------------------------------------------------------


class InPlaceInput(SmallResNet):
    """Rewrites its own input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


@pytest.mark.parametrize("method", ALL)
def test_a_network_that_works_in_place_on_its_input(method: str) -> None:
    network, x = seeded(InPlaceInput()), images(2)
    kept = x.clone()
    found = run(network, x, method, target=1)
    assert torch.equal(x, kept)
    chosen = konkyo.methods()[method]
    if chosen.layer != "input" and not {"inputs", "full_gradients"} & set(chosen.needs):  # these use the image itself
        close(found.signed, run(seeded(SmallResNet()), x - 0.5, method, target=1).signed)


def test_an_untrained_head_is_not_remembered() -> None:
    network, x = seeded(Attention()), images(1)
    weight = network.head.weight.detach().clone()
    with torch.no_grad():
        network.head.weight.zero_()
    run(network, x, "grad_cam")
    with torch.no_grad():
        network.head.weight.copy_(weight)
    assert run(network, x, "grad_cam").layer == "patch"


def test_a_network_that_was_changed_is_traced_again() -> None:
    network, x = seeded(SmallResNet()), images(1)
    run(network, x, "grad_cam")

    network.last = network.stage3
    del network.stage3
    network.forward = lambda x: network.head(  # type: ignore[method-assign]
        network.last(network.stage2(network.stage1(network.stem(x)))).mean((2, 3))
    )
    assert run(network, x, "grad_cam").layer == "last"


def test_the_layer_of_a_site_is_that_layer() -> None:
    model, x = konkyo.Model(seeded(SmallResNet())), images(1)
    site = next(s for s in model.sites(x.shape[1:]) if s.name == "stage2")
    close(run(model, x, "grad_cam", layer=site.layer).signed, run(model, x, "grad_cam", layer="stage2").signed)


@pytest.mark.parametrize("method", ["eigen_cam", "eigen_grad_cam", "score_cam", "grad_cam"])
def test_one_broken_image_does_not_stop_the_others(method: str) -> None:
    network, x = seeded(SmallResNet()), images(3)
    expected = run(network, x, method, target=1)
    x[1, 0, 3, 3] = torch.nan
    found = run(network, x, method, target=1)
    assert found.diagnosis[1].kind == "not finite"
    close(found.signed[::2], expected.signed[::2])


@pytest.mark.parametrize("method", ["score_cam", "ablation_cam", "rise"])
def test_targets_share_the_forwards_of_variants(method: str) -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(2)
    run(network, x, "random_cam")
    counts = counted(network)
    one = run(network, x, method, target=konkyo.TopK(1))
    single = sum(counts)
    counts.clear()
    three = run(network, x, method, target=konkyo.TopK(3))
    assert sum(counts) == single
    close(three.signed[::3], one.signed)
    for row, target in enumerate(three.targets):
        close(three.signed[row], run(network, x[row // 3 :][:1], method, target=target).signed[0])


def test_variants_that_follow_the_target_are_not_shared() -> None:
    from konkyo.engine.needs import Rescore
    from konkyo.methods.base import METHODS

    try:

        @konkyo.method(layer="input")
        def lit(inputs: Tensor, score: Tensor, rescore: Rescore) -> Tensor:
            """The score of the image scaled by its own score, everywhere."""
            again = rescore(1, inputs=lambda i, k: (inputs[i] * score[i].tanh())[None])
            return again[:, :, None] * torch.ones_like(inputs[:, 0])

        network, x = seeded(SmallResNet()), images(1)
        both = run(network, x, "lit", target=konkyo.Each(0, 3))
        for row, target in enumerate((0, 3)):
            close(both.signed[row], run(network, x, "lit", target=target).signed[0])
    finally:
        METHODS.pop("lit", None)


def test_fusing_keeps_what_speaks_against() -> None:
    network, x = seeded(SmallResNet()), images(1)
    with torch.no_grad():
        network.head.weight[1] = -network.head.weight[1].abs()
        network.stage3.conv2.weight.zero_()
        network.stage3.shortcut.weight.abs_()
    found = run(network, x, "grad_cam", target=1, layer=["stage2", "stage3"])
    assert found.diagnosis[0].kind == "all negative"
    assert found.signed.min() < 0


def test_a_layer_whose_output_cannot_be_replaced_is_refused() -> None:
    class Box(dict):
        pass

    class Boxed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(6, 5)
            self.boxing = type("Boxing", (nn.Module,), {"forward": lambda _self, x: Box(a=x)})()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.boxing(self.body(x))["a"].mean((2, 3)))

    network, x = seeded(Boxed()), images(1)
    with pytest.raises(konkyo.KonkyoError, match="Box"):
        run(network, x, "grad_cam", target=1, layer=Layer("boxing", network.boxing))


def test_a_network_that_checks_shapes_itself_is_replayed() -> None:
    class Checks(Twice):
        def forward(self, x: Tensor) -> Tensor:
            a = self.first(x).tanh()
            b = self.shared(a).tanh()
            if a.shape != b.shape:
                raise ValueError("shapes differ")
            return self.head((a + b).mean((2, 3)))

    network, x = seeded(Checks()), images(1)
    assert run(network, x, "ablation_cam", target=1, layer="shared").signed.isfinite().all()


def test_a_network_compiled_in_place() -> None:
    network, x = seeded(SmallResNet(deep_head=True), double=False), images(1, double=False)
    expected = {m: run(network, x, m, target=1, layer="stage2").signed for m in ("grad_cam", "ablation_cam")}
    network.compile(backend="eager")
    network(x)
    for method, signed in expected.items():
        close(run(network, x, method, target=1, layer="stage2").signed, signed)
    assert network._compiled_call_impl is not None


def test_cam_at_the_input_is_a_reason_and_not_an_end() -> None:
    found = konkyo.explanations(seeded(SmallResNet()), images(1), ["hires_cam", "cam"], layer="input", target=1)
    assert list(found) == ["hires_cam", "cam"]
    assert isinstance(found["cam"], konkyo.NotApplicable)
    assert isinstance(found["hires_cam"], konkyo.Explanation)


def test_a_target_need_not_be_hashable() -> None:
    from dataclasses import dataclass

    @dataclass
    class Own:
        index: int

        def __call__(self, output: Tensor) -> Tensor:
            return output[:, self.index]

    network, x = seeded(SmallResNet()), images(2)
    close(run(network, x, "grad_cam", target=Own(2)).signed, run(network, x, "grad_cam", target=2).signed)


@pytest.mark.parametrize("bias", [60.0, -60.0])
def test_saturation_at_either_end(bias: float) -> None:
    network, x = seeded(SmallResNet()), images(1)
    with torch.no_grad():
        network.head.bias[1] = bias
    assert diagnosed(network, x, target=konkyo.ClassTarget(1, score="probability")).kind == "saturated"


def test_the_data_package_is_there_at_once_and_a_name_of_the_library_is_taken_from_the_start() -> None:
    """In one process: data know nothing of methods."""
    import subprocess
    import sys

    program = "import konkyo; print(len(konkyo.data.scenes.CLASSES), konkyo.data.images.MAX_PIXELS)\n"
    program += "@konkyo.method\ndef grad_cam(activations):\n    'Mine.'\n    return activations"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["10", "64000000"]
    assert "registered already" in result.stderr


def test_an_output_of_one_number_per_image() -> None:
    class Squeezed(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, 1]

    network, x = seeded(Squeezed()), images(2)
    expected = run(seeded(SmallResNet()), x, "grad_cam", target=1)
    close(run(network, x, "grad_cam", target=lambda output: output).signed, expected.signed)
    with pytest.raises(konkyo.KonkyoError, match=r"\(2,\)"):
        run(network, x, "grad_cam")
