"""Networks that misbehave: a right map, or an error or a diagnosis that names the cause."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import konkyo
from helpers.detectors import DenseDetector, dense, noise
from konkyo.errors import KonkyoError, KonkyoWarning, silenced

METHODS = ("grad_cam", "hires_cam", "saliency", "recipro_cam", "score_cam", "guided_backprop", "full_grad")
Run = Callable[[nn.Sequential, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, run: Run = lambda features, x: features(x)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features: Any = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.fc, self.run = nn.Linear(8, 5), run

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.run(self.features, x).mean((2, 3)))
        return out


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with silenced():
        yield


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


# --- what works as if nothing were odd --------------------------------------------------------------------------------


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


def checkpointed_twice(features: nn.Sequential, x: Tensor) -> Tensor:
    first: Tensor = checkpoint(features[:3], x, use_reentrant=False)
    second: Tensor = checkpoint(features[3:], first, use_reentrant=False)
    return second


def hooked(features: nn.Sequential, x: Tensor) -> Tensor:
    first = features[:3](x)
    handle = first.register_hook(lambda _gradient: None)
    first.retain_grad()
    out: Tensor = features[3:](first)
    handle.remove()
    return out


def built_in_inference_mode() -> Net:
    with torch.inference_mode():
        return Net()


def with_inference_buffers() -> Net:
    net = Net()
    with torch.inference_mode():
        net.features[1].running_mean = net.features[1].running_mean.clone()
    return net


def with_child(change: Callable[[nn.Module], Any]) -> Net:
    net = Net().eval()
    net.features = change(net.features)
    return net


def compiled_in_place() -> Net:
    net = Net().eval()
    net.features.compile(backend="eager")
    return net


def exported(features: nn.Module) -> nn.Module:
    return torch.export.export(features, (images(),), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)).module()


def scripted(features: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(features)


ODD: dict[str, Callable[[], Net]] = {
    "checkpoint": lambda: Net(lambda f, x: checkpoint(f, x, use_reentrant=False)),
    "checkpoints": lambda: Net(checkpointed_twice),
    "own hooks": lambda: Net(hooked),
    "once differentiable": lambda: Net(lambda f, x: f[3:](Once.apply(f[:3](x)))),
    "in place on its input": lambda: Net(lambda f, x: f(x.mul_(1))),
    "views": lambda: Net(lambda f, x: f(x).flatten(2).view(len(x), 8, 8, 8)),
    "parameters of inference mode": built_in_inference_mode,
    "buffers of inference mode": with_inference_buffers,
    "compiled child": lambda: with_child(lambda f: torch.compile(f, backend="eager")),
    "child compiled in place": compiled_in_place,
    "TorchScript child": lambda: with_child(scripted),
    "exported child": lambda: with_child(exported),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ODD)
def test_the_map_is_that_of_the_plain_network(kind: str, method: str) -> None:
    if kind in ("TorchScript child", "exported child") and method in ("guided_backprop", "full_grad"):
        pytest.skip("needs to look inside")
    net = ODD[kind]()
    if kind != "exported child":  # which refuses it
        net.eval()
    before = [{**vars(module)} for module in net.modules()]
    of_net = [(id(t), t.is_inference()) for t in (*net.parameters(), *net.buffers())]
    result = konkyo.explain(net, images(), target=1, method=method)
    right = konkyo.explain(Net().eval(), images(), target=1, method=method)
    torch.testing.assert_close(result.signed, right.signed, rtol=1e-3, atol=1e-5)
    assert result.diagnosis == right.diagnosis
    assert [(id(t), t.is_inference()) for t in (*net.parameters(), *net.buffers())] == of_net
    for module, attributes in zip(net.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys()
        assert vars(module).get("forward") is attributes.get("forward")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_keep_what_their_backward_needs(kind: type[nn.Module]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.rnn = nn.Conv2d(3, 8, 3, 2, 1), kind(8, 6, 2, batch_first=True, dropout=0.9)
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.rnn(self.conv(x).relu().flatten(2).mT)[0][:, -1])
            return out

    net, x = Recurrent().eval(), images(1)
    grid = net.conv(x).detach().requires_grad_()
    net.fc(net.rnn(grid.relu().flatten(2).mT)[0][:, -1])[0, 1].backward()
    assert grid.grad is not None
    right = (grid.detach() * grid.grad).sum(1).detach()
    result = konkyo.explain(net, x, target=1, method="hires_cam", layer="conv")
    torch.testing.assert_close(result.signed, right, rtol=1e-4, atol=1e-7)


# --- networks whose images see each other, and networks that draw ----------------------------------------------------

TIED: dict[str, Run] = {
    "batch norm": lambda f, x: f(functional.batch_norm(x, None, None, training=True)),
    "variance": lambda f, x: f(x / (x.std((0, 2, 3), keepdim=True) + 1e-3)),
    "mean": lambda f, x: f(x - x.mean(0)),
    "maximum": lambda f, x: f(x / x.abs().max()),
    "softmax": lambda f, x: f(x).softmax(0),
    "neighbour": lambda f, x: f(x + x.roll(1, 0)),
    "similarity": lambda f, x: f(x * (x.flatten(1) @ x.flatten(1).T / 3000).sum(1)[:, None, None, None]),
}
RANDOM: dict[str, Run] = {
    "dropout": lambda f, x: f(functional.dropout(x, 0.5, training=True)),
    "torch.rand": lambda f, x: f(x * torch.rand(len(x), 1, 1, 1)),
    "random": lambda f, x: f(x * random.random()),
    "numpy": lambda f, x: f(x * float(np.random.rand())),
}


@pytest.mark.parametrize("method", ["grad_cam", "saliency", "rise", "score_cam", "integrated_gradients"])
@pytest.mark.parametrize("kind", [*TIED, *RANDOM, "InstanceNorm"])
def test_a_map_does_not_depend_on_the_other_images(kind: str, method: str) -> None:
    run = (TIED | RANDOM).get(kind, lambda f, x: f(functional.instance_norm(x)))
    options = {"rise": {"masks": 30}, "integrated_gradients": {"steps": 4}}.get(method, {})
    together = konkyo.explain(Net(run).eval(), images(3), target=[1, 2, 0], method=method, **options)
    alone = konkyo.explain(Net(run).eval(), images(3)[1:2], target=2, method=method, **options)
    torch.testing.assert_close(together.signed[1:2], alone.signed, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(together.scores[1:2], alone.scores)
    assert together.image_index.tolist() == [0, 1, 2]
    assert ("see each other" in " ".join(together.assumptions) or bool(together.assumptions)) == (
        kind != "InstanceNorm"
    )


def test_a_detector_that_normalises_its_batch_runs_images_one_by_one() -> None:
    """Its candidates are not compared with those in other company: the batch norm itself tells."""

    class Normed(DenseDetector):
        def after(self, levels: Sequence[Tensor]) -> Tensor:
            return super().after([functional.batch_norm(levels[0], None, None, training=True)])

    model, x, few = dense(Normed()), noise(2), konkyo.Detections(threshold=0.0, top=2)
    together = konkyo.explain(model, x, method="odam", target=few)
    for image in range(2):
        alone = konkyo.explain(model, x[image : image + 1], method="odam", target=few)
        torch.testing.assert_close(together.of_image(image).signed, alone.signed)
        torch.testing.assert_close(together.of_image(image).boxes, alone.boxes)
    assert any("one by one" in assumption for assumption in together.assumptions)


def test_views_of_an_image_that_would_see_each_other_are_refused() -> None:
    net, batch = Net(TIED["batch norm"]).eval(), images(2)
    with pytest.raises(konkyo.KonkyoError, match="depend on each other"):
        konkyo.explain(net, batch, target=1, method="augmented(grad_cam)")


@pytest.mark.parametrize("kind", RANDOM)
def test_a_seed_fixes_what_a_network_draws(kind: str) -> None:
    net, maps = Net(RANDOM[kind]).eval(), []
    for state in (1, 2):
        torch.manual_seed(state)
        random.seed(state)
        np.random.seed(state)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        maps += [konkyo.explain(net, images(2), target=1, method="hires_cam", seed=s).signed for s in (0, 5)]
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(maps[0], maps[2])
    assert torch.equal(maps[1], maps[3])
    assert not torch.equal(maps[0], maps[1])


def test_a_warning_says_that_a_network_draws() -> None:
    import konkyo.errors

    konkyo.errors._SILENCE.depth, depth = 0, konkyo.errors._SILENCE.depth
    try:
        with pytest.warns(KonkyoWarning, match="draws random numbers"):
            result = konkyo.explain(Net(RANDOM["dropout"]).eval(), images(1), target=1, method="hires_cam")
    finally:
        konkyo.errors._SILENCE.depth = depth
    assert "draws random numbers" in result.assumptions[-1]


# --- errors -----------------------------------------------------------------------------------------------------------


class OddError(Exception):
    def __init__(self, this: int, that: int) -> None:
        super().__init__(this, that)


@pytest.mark.parametrize("method", ["grad_cam", "saliency", "rise", "recipro_cam"])
@pytest.mark.parametrize(
    "error",
    [OddError(1, 2), KeyError("a"), AttributeError("b"), StopIteration(), NotImplementedError(), ZeroDivisionError()],
)
def test_what_a_network_raises_is_the_cause_of_a_konkyo_error(error: Exception, method: str) -> None:
    def fails(_features: nn.Module, _x: Tensor) -> Tensor:
        raise error

    with pytest.raises(KonkyoError, match="Net failed on images of shape") as caught:
        konkyo.explain(Net(fails).eval(), images(), target=1, method=method)
    assert caught.value.__cause__ is error


NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("full"), NO_MEMORY, KeyboardInterrupt(), SystemExit()]
)
def test_out_of_memory_and_interrupts_pass(error: BaseException) -> None:
    def fails(_features: nn.Module, _x: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        konkyo.explain(Net(fails).eval(), images(), target=1, method="saliency")
    assert caught.value is error


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> Tensor:
        raise KeyError("backward")


@pytest.mark.parametrize("method", ["grad_cam", "saliency", "guided_backprop", "full_grad", "integrated_gradients"])
def test_errors_of_a_backward_are_konkyo_errors(method: str) -> None:
    net = Net(lambda f, x: FailsBackward.apply(f(x))).eval()
    with pytest.raises(KonkyoError, match="backward of Net failed") as caught:
        konkyo.explain(net, images(), target=1, method=method)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_names_the_way_out() -> None:
    net = Net(lambda f, x: checkpoint(f, x, use_reentrant=True)).eval()
    with pytest.raises(KonkyoError, match="use_reentrant=False"):
        konkyo.explain(net, images(), target=1, method="saliency")
    result = konkyo.explain(net, images(), target=1, method="grad_cam")
    assert "use_reentrant=False" in result.diagnosis[0].message


CUT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "int8": (lambda: quantize_dynamic(Net().eval(), {nn.Linear}, torch.qint8), "int8 layers"),
    "detach": (lambda: Net(lambda f, x: f(x).detach()), r"detach\(\)"),
    "numpy": (lambda: Net(lambda f, x: torch.tensor(f(x).detach().numpy())), r"detach\(\)"),
    "no_grad": (lambda: Net(lambda f, x: torch.no_grad()(f)(x)), "no_grad"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("method", ["grad_cam", "saliency", "integrated_gradients"])
@pytest.mark.parametrize("kind", CUT)
def test_a_zero_gradient_names_what_cuts_it_off(kind: str, method: str) -> None:
    make, cause = CUT[kind]
    net = make().eval()
    result = konkyo.explain(net, images(), target=1, method=method)
    assert all(d.kind == "zero gradient" for d in result.diagnosis)
    with pytest.raises(AssertionError, match=cause):
        raise AssertionError(result.diagnosis[0].message)
    assert konkyo.explain(net, images(), target=1, method="rise", masks=30).signed.abs().amax() > 0


def cut_off(output: Tensor) -> Tensor:
    return output[:, 0].detach()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda output: output[:, 99], "IndexError"),
        (lambda output: output[:, 0].tolist(), "it gave list"),
        (lambda output: output, "one score per image"),
        (lambda output: output.argmax(1), "floating scores"),
        (cut_off, "cut off from the output"),
    ],
)
def test_a_target_that_cannot_be_explained_is_a_konkyo_error(target: Any, message: str) -> None:
    with pytest.raises(KonkyoError, match=message):
        konkyo.explain(Net().eval(), images(), target=target, layer="features")


@pytest.mark.parametrize("value", [None, 3, "text", torch.tensor(1.0), [1.0]])
def test_a_select_or_call_without_a_tensor_is_a_konkyo_error(value: Any) -> None:
    for model in (konkyo.Model(Net(), select=lambda _: value), konkyo.Model(Net(), call=lambda _, __: value)):
        with pytest.raises(KonkyoError, match=r"output|tensor"):
            konkyo.explain(model, images(), target=1, method="saliency")


def test_views_that_run_in_a_batch_need_a_network_that_takes_one() -> None:
    net = Net(lambda features, x: torch.cat([features(image[None]) for image in x])).eval()
    with pytest.raises(konkyo.NotApplicable, match="takes them one by one"):
        konkyo.explain(net, torch.randn(1, 3, 16, 16), method="augmented(grad_cam)", target=1)
    assert konkyo.explain(net, torch.randn(1, 3, 16, 16), method="grad_cam", target=1).maps.shape == (1, 4, 4)
