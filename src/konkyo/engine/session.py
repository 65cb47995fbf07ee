"""Session: what a thread does with a network, and all that it takes to undo that, whenever it ends.

Before anything on the network is touched, its state is noted. Hooks and stubs bear the session that put them there. So
the end of a session finds what is left of them, wherever an interrupt came: at every step of the way it can be done
again. They do nothing in other threads, where a forward of the user's own may run.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    _GeneratorContextManager,
    contextmanager,
    nullcontext,
    suppress,
)
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from konkyo.engine.ownership import RANDOM_STATE, Claim
from konkyo.errors import KonkyoError, NetworkError

_T = TypeVar("_T")
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


class _Thread(threading.local):
    """These are the sessions of a thread, the innermost last."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []


_THREAD = _Thread()


class OwnMode(TorchFunctionMode):
    """This is the base of konkyo's modes for the functions of torch, which can be taken off after an interrupt, too."""

    def __exit__(self, *_: object) -> None:
        """Takes the mode off, and what is above it, if it is there: while a function runs, torch takes modes off."""
        while any(mode is self for mode in _function_modes()):
            torch._C._pop_torch_function_stack()


def _function_modes() -> list[Any]:
    """Returns the modes for the functions of torch in this thread, the innermost last."""
    return [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())]


class Hook:
    """A hook of konkyo's: it runs in the thread that made it and does nothing in others."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.thread, self.session = function, threading.get_ident(), innermost()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the hook's function."""
        return self.function(*args, **kwargs) if threading.get_ident() == self.thread else None


class Stub:
    """A stub runs in the place of a module's forward, in the thread that made it; others run the forward."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self.function, self.thread, self.session = function, threading.get_ident(), innermost()
        self.run = module.forward
        self._before = module.__dict__.get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the stub's function, or the forward."""
        return (self.function if threading.get_ident() == self.thread else self.run)(*args, **kwargs)

    def put_on(self, module: nn.Module) -> None:
        """Puts the stub in the place of the forward."""
        module.__dict__["forward"] = self

    def take_off(self, module: nn.Module) -> None:
        """Puts back what was there before."""
        if module.__dict__.get("forward") is self:
            if self._before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = self._before


def hook_after(module: nn.Module, function: Callable[..., Any], **settings: bool) -> RemovableHandle:
    """Registers a `Hook` that runs after a module's forward, also on a TorchScript module, which refuses its own."""
    return nn.Module.register_forward_hook(module, Hook(function), **settings)


def hook_before(module: nn.Module, function: Callable[..., Any], **settings: bool) -> RemovableHandle:
    """Registers a `Hook` that runs before a module's forward."""
    return nn.Module.register_forward_pre_hook(module, Hook(function), **settings)


@contextmanager
def hooked(
    modules: Iterable[nn.Module],
    *,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
    with_kwargs: bool = False,
    always: bool = False,
) -> Iterator[None]:
    """Within the context hooks run before and after the forwards of modules.

    `with_kwargs`: the one before is given the keyword arguments, too. `always`: the one after runs after errors, too.
    """
    with ExitStack() as undo:
        for module in modules:
            if before is not None:
                undo.callback(hook_before(module, before, with_kwargs=with_kwargs).remove)
            if after is not None:
                undo.callback(hook_after(module, after, always_call=always).remove)
        yield


@contextmanager
def running_modules(root: nn.Module) -> Iterator[list[nn.Module]]:
    """Yields the list of the modules whose forward runs at the moment, innermost last."""
    running: list[nn.Module] = []

    def start(module: nn.Module, _args: Any) -> None:
        running.append(module)

    def end(_module: nn.Module, _args: Any, _out: Any) -> None:
        running.pop()

    with hooked(open_modules(root), before=start, after=end, always=True):
        yield running


def _close_contexts(traceback: TracebackType | None) -> None:
    """Ends the contexts of generator functions that an interrupt has left open, innermost first.

    Otherwise they would end when the exception is forgotten, at any time, and put back what was long put back.
    """
    open_ = []
    while traceback is not None:
        manager = traceback.tb_frame.f_locals.get("self")
        generator = vars(manager).get("gen") if isinstance(manager, _GeneratorContextManager) else None
        open_ += [] if generator is None else [generator]
        traceback = traceback.tb_next
    for generator in reversed(open_):
        with suppress(Exception):
            generator.close()


def outside_inference() -> AbstractContextManager[object]:
    """Returns a context outside of inference mode, which costs nothing where that is off.

    The guard of torch puts back the grad mode when it is forgotten; after an interrupt that is any time.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def innermost() -> Session | None:
    """Returns the innermost session of this thread."""
    return _THREAD.sessions[-1] if _THREAD.sessions else None


def open_modules(root: nn.Module) -> list[nn.Module]:
    """Returns the modules whose forward is Python's: what is inside a TorchScript module cannot be hooked."""
    modules, left, known = list[nn.Module](), [root], {root}
    while left:
        module = left.pop()
        modules.append(module)
        if not isinstance(module, torch.jit.ScriptModule):
            inside = [child for child in module.children() if child not in known]
            known.update(inside)
            left += reversed(inside)
    return modules


class Session:
    """Within the context a network is in eval mode and runs eagerly, for this thread alone; then all is as it was.

    That is: every module's mode, hooks, forward, what `module.compile()` left, the random state; and the caller's
    autocast keeps no weights that were cast here without a graph. Weights made in inference mode are copies within it,
    so that they can be part of a graph. `seed`: every forward of a network that draws random numbers starts from it;
    None: it draws them as they come.

    An interrupt in the very first step of the end leaves it undone: `with session, session` ends it twice.
    """

    def __init__(self, root: nn.Module, seed: int | None = None) -> None:
        """Prepares the session; nothing is touched yet."""
        self.root, self.seed = root, seed
        self.draws: bool | None = None
        """Whether the forward draws random numbers; None: that is not known yet."""
        self.tied = False
        """Whether the images of a batch were seen to depend on each other."""
        self.single = False
        """Whether the network itself runs the images of a batch one by one, so that its layers see one at a time."""
        self.running = False
        """Whether a forward of the network is under way."""
        self._modules = list(root.modules())
        self._claim, self._random_claim = Claim(self._modules), Claim([RANDOM_STATE])
        self._state: _State | None = None
        self._random_state: list[tuple[Callable[[Any], object], Any]] = []

    @property
    def alone(self) -> bool:
        """Returns whether images must be run one by one, so that each has the score that it has by itself."""
        return self.tied or self.single or bool(self.draws)

    def concerns(self, root: nn.Module) -> bool:
        """Tells whether the session's network has a module in common with this one."""
        return not set(self._modules).isdisjoint(root.modules())

    def __enter__(self) -> Session:
        """Waits for other threads to end what they do with the network, and starts."""
        try:
            if self._state is None:
                self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Undoes all that is left to be undone."""
        try:
            _close_contexts(traceback)
            self._end()
        except BaseException:  # an interrupt
            _close_contexts(traceback)
            self._end()
            raise

    def _start(self) -> None:
        self._claim.hold()
        self._state = _State(self._modules, [] if self._claim.contested() else _random_states(_devices(self.root)))
        _THREAD.sessions.append(self)
        for module in self._modules:
            if module.training:  # not by `eval()`, which modules may refuse, or do more in than can be undone
                module.training = False
            if module.__dict__.get("_compiled_call_impl"):
                module.__dict__["_compiled_call_impl"] = None
            if type(module).__name__ == "OptimizedModule":  # its class takes seconds to import
                Stub(module, module.__dict__["_modules"]["_orig_mod"]).put_on(module)
        for module, name, tensor in self._state.of_inference:
            with outside_inference():
                copy = tensor.clone()
                setattr(module, name, nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy)

    def _end(self) -> None:
        """Undoes everything; it can be done again where it was interrupted."""
        if self._state is not None:
            if self in _THREAD.sessions:  # those within, which an interrupt left open
                for session in reversed(_THREAD.sessions[_THREAD.sessions.index(self) + 1 :]):
                    session._end()
            self._state.restore(self)
            self._restore_random_state()
            if not self._claim.contested():
                self._state.restore_random()
            if self in _THREAD.sessions:
                del _THREAD.sessions[_THREAD.sessions.index(self) :]
            self._state = None
        self._random_claim.release()
        self._claim.release()

    # --- forwards -----------------------------------------------------------------------------------------------------

    def run(self, forward: Callable[[], _T]) -> _T:
        """Runs a forward of the network, from the session's seed where it draws random numbers."""
        self.running = True
        try:
            return forward() if self.seed is None or self.draws is False else self._seeded(forward, self.seed)
        finally:
            self.running = False

    def _seeded(self, forward: Callable[[], _T], seed: int) -> _T:
        """Runs a forward from a seed, and notes whether it draws. The random state is given back at once."""
        devices = _devices(self.root)
        try:
            self._random_claim.hold()
            self._random_state = _random_states(devices)
            _sow(seed, devices)
            before = _random_states(devices)
            result = forward()
            if not self.draws:
                self.draws = not _same(before, _random_states(devices))
            return result
        finally:
            self._restore_random_state()
            self._random_claim.release()

    def _restore_random_state(self) -> None:
        for put_back, state in self._random_state:
            put_back(state)
        self._random_state = []


@contextmanager
def seeded(seed: int, devices: Sequence[int] = ()) -> Iterator[None]:
    """Within the context random numbers come from a seed, for this thread alone; after it the state is as it was."""
    claim = Claim([RANDOM_STATE])
    try:
        claim.hold()
        states = _random_states(devices)
        try:
            _sow(seed, devices)
            yield
        finally:
            for put_back, state in states:
                put_back(state)
    finally:
        claim.release()


def untouched(root: nn.Module, seed: int | None = None) -> Session:
    """Returns a context in which the network can be worked on, and which leaves it as it was; see `Session`."""
    return Session(root, seed)


def session_of(root: nn.Module) -> Session | None:
    """Returns this thread's innermost session of a network."""
    return next((session for session in reversed(_THREAD.sessions) if session.root is root), None)


def refuse_within_forward(root: nn.Module, name: str) -> None:
    """Raises KonkyoError where this thread runs the network for an explanation at this moment, as in a hook of it."""
    if any(session.running and session.concerns(root) for session in _THREAD.sessions):
        raise KonkyoError(
            f"{name} is explained within a forward of its own that an explanation runs (in a hook, say), which would "
            "never end; let the hook do nothing while it explains"
        )


def out_of_memory(error: Exception) -> bool:
    """Tells whether an error says that no memory is left: torch raises a bare RuntimeError for that of the CPU."""
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    full = "out of memory" in text or "can't allocate memory" in text
    return full or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def run_network(root: nn.Module, name: str, images: Tensor, forward: Callable[[], _T]) -> _T:
    """Runs a forward of a network. KonkyoError: what the network raises, its cause kept; out of memory passes."""
    session = session_of(root)
    try:
        return forward() if session is None else session.run(forward)
    except KonkyoError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        hint = " (one image needs a first axis of its own: images[None])" if images.ndim == 3 else ""
        raise NetworkError(
            f"{name} failed on images of shape {tuple(images.shape)}{hint}: {in_short(error)}"
        ) from error


@contextmanager
def backward_errors(name: str) -> Iterator[None]:
    """Raises what the backward of a network raises as KonkyoError, its cause kept; out of memory passes."""
    try:
        yield
    except KonkyoError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        text, way_out = str(error), ""
        if "checkpoint" in f"{type(error).__name__} {text}".lower():
            way_out = "; switch gradient checkpointing off to explain, or use it with use_reentrant=False"
        elif "once_differentiable" in text or "double backward" in text or "derivative for" in text:
            way_out = "; a part of it has no such derivative, and methods without a (second) gradient need none"
        raise NetworkError(f"the backward of {name} failed: {in_short(error)}{way_out}") from error


def in_short(error: BaseException) -> str:
    """Returns the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


# --- what is noted ----------------------------------------------------------------------------------------------------


class _State:
    """This is the state of a network's modules and of the thread, as a session finds it."""

    def __init__(self, modules: list[nn.Module], random_states: list[tuple[Callable[[Any], object], Any]]) -> None:
        self._modules, self._random = modules, random_states
        self._modes = [(module, module.training) for module in modules]
        self._compiled = [
            (m, m.__dict__["_compiled_call_impl"]) for m in modules if "_compiled_call_impl" in m.__dict__
        ]
        self.of_inference = [
            (module, name, tensor)
            for module in modules
            for name, tensor in chain(module._parameters.items(), module._buffers.items())
            if tensor is not None and tensor.is_inference()
        ]
        self._grad, self._function_modes = torch.is_grad_enabled(), _function_modes()
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        self._autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
        self._cache, self._nesting = torch.is_autocast_cache_enabled(), _autocast_nesting()

    def restore(self, session: Session) -> None:
        """Restores all but the random state, and takes off hooks and stubs of the session's."""
        for module in self._modules:
            _take_off_hooks(module, session)
            stub = module.__dict__.get("forward")
            while isinstance(stub, Stub) and stub.session is session:
                stub.take_off(module)
                stub = module.__dict__.get("forward")
        for module, training in self._modes:
            if module.training != training:
                module.training = training
        for module, call in self._compiled:
            module.__dict__["_compiled_call_impl"] = call
        for module, name, tensor in self.of_inference:
            if getattr(module, name) is not tensor:
                setattr(module, name, tensor)
        self._restore_thread()

    def _restore_thread(self) -> None:
        """Restores what torch has one of per thread, should an interrupt have left it changed."""
        if list(map(id, _function_modes())) != list(map(id, self._function_modes)):
            while torch._C._len_torch_function_stack():
                torch._C._pop_torch_function_stack()
            for mode in self._function_modes:
                torch._C._push_on_torch_function_stack(mode)
        torch.set_grad_enabled(self._grad)
        while _autocast_nesting() > self._nesting:
            torch.autocast_decrement_nesting()
        for device, enabled, dtype in self._autocast:
            if torch.is_autocast_enabled(device) != enabled or torch.get_autocast_dtype(device) != dtype:
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(self._cache)
        torch.clear_autocast_cache()

    def restore_random(self) -> None:
        """Restores the random state."""
        for put_back, state in self._random:
            put_back(state)


def _take_off_hooks(module: nn.Module, session: Session) -> None:
    """Takes what is left of a session's hooks off a module."""
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        hooks = module.__dict__.get(kind)
        for key in (
            [k for k, hook in hooks.items() if isinstance(hook, Hook) and hook.session is session] if hooks else ()
        ):
            for dictionary in _HOOKS:
                module.__dict__[dictionary].pop(key, None)


def _autocast_nesting() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _devices(root: nn.Module) -> list[int]:
    """Returns the indices of the GPUs on which a network is."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    tensors = chain(root.parameters(), root.buffers())
    return sorted({t.device.index for t in tensors if t.device.type == "cuda"})


def _random_states(devices: Sequence[int]) -> list[tuple[Callable[[Any], object], Any]]:
    """Returns the states of the random generators of torch, Python and NumPy (where it is used), with their setters."""
    generators = [torch.default_generator, *(torch.cuda.default_generators[index] for index in devices)]
    states: list[tuple[Callable[[Any], object], Any]] = [(g.set_state, g.get_state()) for g in generators]
    states.append((random.setstate, random.getstate()))
    if (numpy := sys.modules.get("numpy")) is not None:
        states.append((numpy.random.set_state, numpy.random.get_state(legacy=True)))
    return states


def _sow(seed: int, devices: Sequence[int]) -> None:
    """Starts all random generators from a seed."""
    for generator in [torch.default_generator, *(torch.cuda.default_generators[index] for index in devices)]:
        generator.manual_seed(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)


def _same(before: list[tuple[Callable[[Any], object], Any]], after: list[tuple[Callable[[Any], object], Any]]) -> bool:
    """Tells whether no generator was drawn from."""
    return all(_equal(old, new) for (_, old), (_, new) in zip(before, after, strict=False))


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        return torch.equal(old, new)
    return all(
        (a == b) if isinstance(a, (str, int, float, tuple, type(None))) else (a == b).all()
        for a, b in zip(old, new, strict=True)
    )
