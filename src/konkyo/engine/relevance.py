"""Relevance: a forward puts out what it always does, but its gradient times a value is that value's relevance.

`rules` says which rule linear maps follow by their kind and place, `linear_rules` and `function_rules` have the rules.
Nothing stays behind on the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from konkyo.engine.attention import Attentions
from konkyo.engine.function_rules import GATES, KEEP_PIXELS, PIECEWISE_LINEAR, SMOOTH, Marks, hand_on
from konkyo.engine.functions import (
    AS_IT_IS,
    ATTENTIONS,
    DIVIDE,
    HAND_ON,
    LOOKED_AT,
    MULTIPLY,
    Application,
    detached,
    is_in_place,
    is_sum_and_product,
    name_of,
    sum_and_product,
    tensors_in,
)
from konkyo.engine.linear_rules import LinearCall, affine, applied
from konkyo.engine.rules import Rules
from konkyo.engine.session import OwnMode, running_modules
from konkyo.errors import NotApplicable

_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_LINEAR = ("linear", "conv1d", "conv2d", "conv3d")


class Steps(Attentions):
    """Computes attentions step by step, so that every step is a function with a rule."""

    def _record(self, probabilities: Tensor) -> Tensor:
        self.probabilities.append(probabilities)
        return probabilities


class _Relevance(OwnMode):
    """Runs what depends on the leaf by the rules. `running` are the modules whose forward runs, innermost last."""

    def __init__(self, rules: Rules, bounds: tuple[Tensor, ...] | None, running: list[nn.Module]) -> None:
        super().__init__()
        self.rules, self.table = rules, SMOOTH if rules.smooth else PIECEWISE_LINEAR
        self.running, self.marks = running, Marks(rules)
        self._bounds = bounds
        self._outputs = WeakIdKeyDictionary()
        """What functions put out here; scripts and custom functions of autograd run unseen."""
        self._calls = WeakIdKeyDictionary()
        """The linear map that put a tensor out."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one function of torch in place of itself, as the mode's protocol asks."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():  # before the leaf, or within a custom function of autograd
            return function(*args, **kwargs)
        learned = [t for t in tensors_in((args, kwargs)) if t.requires_grad]
        after = [t for t in learned if not isinstance(t, nn.Parameter)]
        for tensor in after:
            if tensor.grad_fn is not None and tensor not in self._outputs:
                raise self._without_rule(f"{tensor.grad_fn.name()}, from outside of torch's functions")
        if after and self.rules.smooth and function in ATTENTIONS:
            with self:
                return Steps().__torch_function__(function, types, args, kwargs)
        if after and is_sum_and_product(function, args, kwargs):
            with self:
                return sum_and_product(function, args, kwargs)
        first, spread = self.marks.first, self.marks.spreads
        if self._bounds is not None and after and not len(first):
            first[after[0]] = self._bounds
        spreads = [t for t in tensors_in((args, kwargs)) if t in spread] if len(spread) else []
        if after and spreads and name_of(function) not in (*LOOKED_AT, *MULTIPLY, *DIVIDE):
            raise self._refused(spread[spreads[0]])  # its part would be lost in silence
        out = self._run(Application(function, args, kwargs, after))
        for tensor in tensors_in((out,)):
            if spreads and not after and tensor.is_floating_point():
                spread[tensor] = spread[spreads[0]]
        if learned and not after:  # what weights alone make is constant, as they are
            return detached(out)
        for tensor in (*tensors_in((out,)), *tensors_in(args[:1])):  # the first may be written to
            self._outputs[tensor] = None
        return out

    def _run(self, run: Application) -> Any:
        """Runs one function, its gradient by the rule where it depends on the leaf. NotApplicable: there is no rule."""
        function, args, kwargs, after, name = run.function, run.args, run.kwargs, run.after, run.name
        if not after or name in LOOKED_AT:
            out = function(*args, **kwargs)
            if not after or not any(t.requires_grad for t in tensors_in((out,))) or any(out is a for a in args[:1]):
                return out
        if name in AS_IT_IS and any((out := function(*args, **kwargs)) is a for a in args[:1]):
            return out
        inplace = is_in_place(function, kwargs)
        if not inplace and (folded := self._folded(run)) is not None:
            return folded
        for tensor in after:
            self._apply(tensor)
        if name in _LINEAR or (self.rules.smooth and (name in _TRANSPOSED or _times_matrix(run))):
            call = self._linear(run)
            if call is None:
                raise self._refused(name)
            out = function(*args, **kwargs)
            out = out.clone() if out._is_view() else out  # what is a view cannot get another graph for nothing
            self._calls[out] = call
            return out
        rule = self.table.get(name)
        written = args[0] if inplace and rule is not None and rule is not hand_on else None
        out = function(*args, **kwargs) if written is None else function(written.clone(), *args[1:], **kwargs)
        if not any(t.requires_grad for t in tensors_in((out,))):  # a size, a comparison, a detached copy
            return out
        ruled = None if rule is None else rule(replace(run, out=out), self.marks)
        if ruled is None:
            raise self._refused(name)
        ruled = ruled if written is None else written.copy_(ruled)
        self._mark(run, ruled)
        return ruled

    def _refused(self, name: str) -> NotApplicable:
        return self._without_rule(f"{type(self.running[-1]).__name__}'s {name}" if self.running else name)

    def _without_rule(self, what: str) -> NotApplicable:
        kinds = "convolutions, batch norms, ReLUs and pooling have one (lrp has more)"
        if self.rules.smooth:
            kinds = "convolutions, linear maps, norms, usual activations, pooling, products and attention have one"
        return NotApplicable(f"there is no relevance rule for {what}, which runs after the layer; {kinds}")

    def _mark(self, run: Application, ruled: Any) -> None:
        """Marks results that are the image still, and gates."""
        first, after, name = self.marks.first, run.after, run.name
        if name in KEEP_PIXELS and after and all(t in first for t in after):
            bounds: list[list[Tensor]] = []
            for i in range(len(first[after[0]])):
                with torch.no_grad():
                    bounds.append(list(tensors_in((run.again(after, [first[t][i] for t in after]),))))
            for at, tensor in enumerate(tensors_in((ruled,))):
                ends = [bound[at] for bound in bounds]
                first[tensor] = (torch.minimum(*ends), torch.maximum(*ends)) if ends else ()
        if name in GATES or (name in HAND_ON and len(after) == 1 and after[0] in self.marks.gates):
            for tensor in tensors_in((ruled,)):
                self.marks.gates[tensor] = None

    # --- linear maps --------------------------------------------------------------------------------------------------

    def _linear(self, run: Application) -> LinearCall | None:
        """Returns the call of a linear map; None where its weights depend on the leaf, too."""
        if _times_matrix(run):
            run = Application(functional.linear, (run.args[0], run.args[1].mT), {}, run.after)
        values = dict(zip(("input", "weight", "bias"), run.args, strict=False)) | run.kwargs
        x, weight, bias = values.pop("input"), values.pop("weight"), values.pop("bias", None)
        if len(run.after) != 1 or not x.requires_grad:
            return None
        flat = run.name == "linear" or all(s == 1 for s in (*weight.shape[2:], *x.shape[2:]))
        where = "linear" if flat else "conv"
        rule, bounds = getattr(self.rules, where), ()
        if x in self.marks.first and self.rules.first is not None:
            rule, where, bounds = self.rules.first, "first", self.marks.first[x]
        named = {key: value for key, value in values.items() if key in run.kwargs}
        return LinearCall(run.function, x, weight.detach(), bias, run.args[3:], named, rule, where, bounds)

    def _folded(self, run: Application) -> Tensor | None:
        """Runs a factor and a summand per channel after a linear map as part of that map; None: it is none."""
        if not self.rules.fold or len(run.after) != 1 or run.after[0] not in self._calls:
            return None
        call: LinearCall = self._calls[run.after[0]]
        change = None if name_of(call.function) in _TRANSPOSED else affine(call, run)
        if change is None:
            return None
        # What is read may get the backward of its rule later, which a norm that saved it would see.
        out: Tensor = run.again(run.after, [run.after[0].clone()])
        self._calls[out] = call.scaled(*change, native=call.native and not call.applied)
        call.read = True
        return out

    def _apply(self, tensor: Tensor, *, last: bool = False) -> None:
        """Gives what a linear map put out the backward of its rule, once, before anything reads it."""
        if tensor not in self._calls or self._calls[tensor].applied:
            return
        call: LinearCall = self._calls[tensor]
        call.applied = True
        if last and self.rules.negated:
            call = replace(call, weight=-call.weight, bias=None)
        with torch.enable_grad():
            tensor.copy_(applied(call, tensor, self.rules))

    def end(self) -> None:
        """Applies the rules of linear maps that nothing has read, as of the one that put out the scores."""
        calls = {tensor: self._calls[tensor] for tensor in list(self._calls)}
        left = [tensor for tensor, call in calls.items() if not (call.applied or call.read)]
        if self.rules.negated and not left:
            raise NotApplicable("compares with the opposite of what a last linear map puts out; this network has none")
        for tensor in left:
            self._apply(tensor, last=True)


def _times_matrix(run: Application) -> bool:
    """Tells whether a product is a linear layer in other words: features times one matrix of weights."""
    args = run.args
    pair = run.name in ("matmul", "mm") and len(args) == 2 and not run.kwargs and len(run.after) == 1
    return bool(pair and args[0] is run.after[0] and args[0].ndim > 1 and args[1].ndim == 2)


@contextmanager
def ruled(root: nn.Module, rules: Rules, bounds: tuple[Tensor, ...] | None = None) -> Iterator[None]:
    """Within the context a forward puts out what it always does, but its gradient times a value is relevance.

    Convolutions and linear maps, modules or functions, follow the rule of their kind with the weights they run with.
    For ReLU, pooling, dropout, rearrangements and multiplication by a constant, gradient times value is relevance
    already (Montavon et al., 2019, Sec. 10.2). `bounds`: given where the leaf is the image, which may have a rule of
    its own; the least and the largest images for the rule box, else (). NotApplicable, when a function that has no
    rule runs on what depends on the leaf.
    """
    with running_modules(root) as running:
        mode = _Relevance(rules, bounds, running)
        with mode:
            yield
        mode.end()
