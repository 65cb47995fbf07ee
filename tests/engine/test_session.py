"""Sessions: threads that share a network, interrupts, and explaining within a forward."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

import konkyo
from konkyo.engine.capture import capture, untouched
from konkyo.engine.layer import Layer
from konkyo.engine.session import Hook, Stub, innermost, seeded
from konkyo.errors import KonkyoError, silenced

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_kernel_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_kernel_thread")
def test_maps_from_eight_threads_are_those_of_one() -> None:
    outcome = benchmark("threads").run(calls=320, threads=8)
    assert not outcome.faults, outcome


@pytest.mark.usefixtures("one_kernel_thread")
def test_interrupts_leave_nothing_behind() -> None:
    with silenced():
        hits, left = benchmark("interrupts").run(signals=60)
    assert hits == 60
    assert not left


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def in_thread(work: object) -> list[BaseException]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return errors


def test_hooks_and_stubs_do_nothing_in_other_threads() -> None:
    net, x, outputs = network().eval(), torch.randn(1, 3, 8, 8), list[Tensor]()
    right = net(x)
    stub = Stub(net[0], lambda _: torch.zeros(1, 4, 6, 6))
    stub.put_on(net[0])
    with capture([Layer("1", net[1])], leaves=[Layer("1", net[1])]) as captured:
        assert not in_thread(lambda: outputs.append(net(x)))
        assert not captured.calls
        assert not torch.equal(net(x), right)
    stub.take_off(net[0])
    assert torch.equal(outputs[0], right)
    assert "forward" not in net[0].__dict__


def test_networks_that_share_a_module_wait_for_each_other() -> None:
    trunk, order = nn.Conv2d(3, 4, 3), list[str]()
    one, two, other = nn.Sequential(trunk), nn.Sequential(trunk, nn.ReLU()), nn.Sequential(nn.ReLU())

    def wait() -> None:
        with untouched(two):
            order.append("two")

    with untouched(one):
        assert not in_thread(lambda: untouched(other).__enter__().__exit__(None, None, None))
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.1)
        order.append("one")
    thread.join(10)
    assert order == ["one", "two"]


def test_two_threads_that_would_wait_for_each_other_are_told() -> None:
    first, second, both, errors = nn.ReLU(), nn.ReLU(), threading.Barrier(2), list[BaseException]()

    def nested(outer: nn.Module, inner: nn.Module) -> None:
        with untouched(outer):
            both.wait(10)
            try:
                with untouched(inner):
                    pass
            except KonkyoError as error:
                errors.append(error)

    threads = [threading.Thread(target=nested, args=pair) for pair in ((first, second), (second, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert len(errors) == 1
    assert "wait forever" in str(errors[0])


def test_a_session_ends_what_an_interrupt_left_open() -> None:
    net = network().train()
    own = net[1].register_forward_hook(lambda *_: None)
    grad, session, modes = torch.is_grad_enabled(), untouched(net), torch._C._len_torch_function_stack()
    with session:
        assert not net.training
        inner = untouched(net)
        inner.__enter__()  # its end never comes
        net[0].register_forward_hook(Hook(lambda *_: None))
        net[0].register_forward_pre_hook(Hook(lambda *_: None), with_kwargs=True)
        Stub(net[4], lambda x: x).put_on(net[4])
        BaseTorchFunctionMode().__enter__()
        torch.set_grad_enabled(False)
        torch.set_autocast_enabled("cpu", True)
        torch.autocast_increment_nesting()
    assert innermost() is None
    assert torch._C._len_torch_function_stack() == modes
    assert torch.is_grad_enabled() is grad
    assert not torch.is_autocast_enabled("cpu")
    assert all(module.training and "forward" not in module.__dict__ for module in net.modules())
    assert not net[0]._forward_hooks
    assert not net[0]._forward_pre_hooks
    assert list(net[1]._forward_hooks) == [own.id]
    assert not in_thread(lambda: konkyo.explain(net, torch.randn(1, 3, 8, 8), target=0, method="eigen_cam"))


def test_networks_can_be_copied_and_pickled_while_they_are_explained() -> None:
    net = network()

    def target(output: Tensor) -> Tensor:
        copy.deepcopy(net)
        pickle.dumps(network())
        return output[:, 0]

    assert konkyo.explain(net, torch.randn(1, 3, 8, 8), target=target).signed.isfinite().all()


def test_explaining_in_a_hook_of_the_network_is_refused_where_it_would_never_end() -> None:
    net, x = network().eval(), torch.randn(1, 3, 8, 8)
    net[1].register_forward_hook(lambda *_: konkyo.explain(net, x, target=0) and None)
    with pytest.raises(KonkyoError, match="within a forward of its own"):
        konkyo.explain(net, x, target=0)
    with pytest.raises(KonkyoError, match="within a forward of its own"):
        net(x)


def test_explaining_in_a_hook_works_where_the_hook_rests_meanwhile() -> None:
    net, x, maps, busy = network().eval(), torch.randn(1, 3, 8, 8), list[Tensor](), list[bool]()
    right, alone = net(x), konkyo.explain(net, x, target=0).signed

    def hook(*_: object) -> None:
        if not busy:
            busy.append(True)
            maps.append(konkyo.explain(net, x, target=0).signed)

    net[1].register_forward_hook(hook)
    assert torch.equal(net(x), right)
    assert torch.equal(maps[0], alone)


def test_another_network_can_be_explained_in_a_hook_of_a_network_that_is_explained() -> None:
    net, other, x, maps = network().eval(), network().eval(), torch.randn(1, 3, 8, 8), list[Tensor]()
    alone = konkyo.explain(other, x, target=0).signed
    net[1].register_forward_hook(lambda *_: maps.append(konkyo.explain(other, x, target=0).signed))
    konkyo.explain(net, x, target=1)
    assert maps
    assert all(torch.equal(signed, alone) for signed in maps)


def test_seeded_numbers_of_two_threads_do_not_mix() -> None:
    drawn: dict[int, list[Tensor]] = {}

    def draw(seed: int) -> None:
        for _ in range(20):
            with seeded(seed):
                drawn.setdefault(seed, []).append(torch.cat([torch.rand(1) for _ in range(50)]))

    state = torch.get_rng_state()
    threads = [threading.Thread(target=draw, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [len(drawn.get(seed, ())) for seed in range(4)] == [20] * 4, "one waits for another"
    assert torch.equal(torch.get_rng_state(), state)
    for seed, values in drawn.items():
        right = torch.rand(50, generator=torch.Generator().manual_seed(seed))
        assert all(torch.equal(value, right) for value in values)


def test_random_networks_in_two_threads_have_the_maps_of_one() -> None:
    nets = [nn.Sequential(*network()[:2], nn.Dropout(), *network()[2:]).eval() for _ in range(2)]
    for net in nets:
        net[2].forward = lambda x: nn.functional.dropout(x, 0.5, training=True)  # type: ignore[method-assign]
    x = torch.randn(1, 3, 8, 8)

    def explained(net: nn.Module) -> Tensor:
        with silenced():
            return konkyo.explain(net, x, target=0, method="hires_cam", seed=3).signed

    alone, state, same = [explained(net) for net in nets], torch.get_rng_state(), list[bool]()
    threads = [
        threading.Thread(target=lambda i=i: same.extend(torch.equal(explained(nets[i]), alone[i]) for _ in range(8)))
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(same) == 16
    assert all(same)
    assert torch.equal(torch.get_rng_state(), state)
