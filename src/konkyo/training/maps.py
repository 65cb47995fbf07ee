"""Grad-CAM of a network in training: maps with a graph to the weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from konkyo.engine.capture import Watch, untouched
from konkyo.engine.forward import Pass, at_least_float32
from konkyo.engine.layer import Layer, bind, linear_head
from konkyo.errors import KonkyoError, unknown
from konkyo.models import Model, as_model
from konkyo.targets.classes import class_logits
from konkyo.utils.tensors import grid_mean, weigh

Mode: TypeAlias = Literal["auto", "closed_form", "autograd", "detached"]
MODES: tuple[Mode, ...] = ("auto", "closed_form", "autograd", "detached")
View: TypeAlias = Literal["train", "eval"]


class TrainingMaps:
    """Grad-CAM maps (Selvaraju et al., 2017, Eq. 1) of the network's last forward, to be differentiated.

    Made once for a network, in any wrapper, and the shape (C, H, W) of its images; called after each forward. `layer`
    as in `konkyo.explain`; None: the automatic one. `mode`:

    - "closed_form": W_c / (h w) are the weights, for a head of global average pooling and one linear layer. The maps
      are without dropout's mask, as in evaluation. No backward.
    - "autograd": one gradient of the batch's scores, with a graph through it (`create_graph`), for any head.
    - "detached": that gradient as a constant.
    - "auto": "closed_form" where the head is found to be of that kind, else "autograd".

    `view`: "train", of the forward that the caller made, batch statistics, dropout and all; or "eval", of another one
    in eval mode, which costs a forward and its backward. The hooks stay on the network until `close`.

    KonkyoError: an unknown mode, a layer without a grid, "closed_form" for another head.
    """

    def __init__(
        self,
        model: Model | nn.Module,
        shape: Sequence[int],
        *,
        layer: str | nn.Module | Layer | None = None,
        mode: Mode = "auto",
        view: View = "train",
    ) -> None:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        if view not in ("train", "eval"):
            raise unknown("view", view, ("train", "eval"))
        adapted = as_model(model)
        self._model, self._view, self.network = adapted, view, adapted.module
        self.layer = adapted.layer(layer, shape)
        if self.layer.module is None or self.layer.level is None:
            raise KonkyoError(f"training needs a layer with one feature grid; {self.layer.name!r} has none")
        noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        with untouched(self.network):
            pass_ = Pass(adapted, adapted.prepared(noise), [self.layer])
        if pass_.output.ndim != 2:
            raise KonkyoError(f"logits (N, K) were expected of {adapted.name}; got shape {tuple(pass_.output.shape)}")
        self.grid: tuple[int, ...] = tuple(pass_.activations(self.layer).shape[2:])
        self.classes = class_logits(pass_.output).shape[1]
        head = None if mode in ("autograd", "detached") else _pooled_head(adapted, noise, self.layer)
        if mode == "closed_form" and head is None:
            raise KonkyoError(
                f"closed_form needs global average pooling and one linear layer after the layer; what follows "
                f"{self.layer.name!r} of {adapted.name} is something else: mode 'autograd' takes any head"
            )
        self.mode: Mode = mode if mode != "auto" else "autograd" if head is None else "closed_form"
        self._proven = False
        self._head = head
        self._watch = Watch(self.network, self.layer)

    def __call__(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Returns the map of one class per image, at least fp32. (N, K), (N,) int64 -> (N, h, w), after the ReLU.

        `logits` are what the network made of the batch in its last forward. KonkyoError: that forward was not
        differentiated, or its output went through something that stops gradients.
        """
        (args, kwargs), (raw,) = self._watch.take()
        if self._view == "eval":
            logits, raw = self._evaluated(args, kwargs)
        activations = self.layer.fold(raw)
        if len(classes) != len(logits) or len(activations) != len(logits):
            raise KonkyoError(
                f"logits and a label of each image of the last forward were expected: {len(activations)} images went "
                f"in; got logits of {len(logits)} and {len(classes)} labels"
            )
        with torch.autocast(raw.device.type, enabled=False):
            if self.mode == "closed_form":
                assert self._head is not None
                maps = weigh(class_weights(self._head, classes) / _cells(activations), at_least_float32(activations))
            else:
                maps = weigh(self._mean_gradient(logits, raw, classes), at_least_float32(activations))
        return maps.relu()

    def _mean_gradient(self, logits: Tensor, raw: Tensor, classes: Tensor) -> Tensor:
        """Returns (N, C): alpha of Eq. 1, of all samples from one gradient of the sum of their scores.

        Samples do not depend on each other after the layer, unless batch statistics are taken there; in view "eval"
        they never do.
        """
        # Times the number of cells, for in half precision the gradient of a mean would vanish; but within its range.
        scale = min(_cells(self.layer.fold(raw)), 1 << 14)
        score = class_logits(logits).gather(1, classes[:, None]).sum() * scale
        try:
            (gradient,) = torch.autograd.grad(score, raw, create_graph=self.mode == "autograd", retain_graph=True)
        except RuntimeError as error:
            raise KonkyoError(
                f"the logits cannot be differentiated by the layer {self.layer.name!r} ({str(error).splitlines()[0]}). "
                "Under torch.compile use view='eval', which runs the network as it is, or a head of pooling and a "
                "linear layer"
            ) from error
        if self.mode == "autograd" and not self._proven:
            if _ends(gradient):
                raise KonkyoError(
                    f"what follows the layer {self.layer.name!r} has no second derivative; for attention run the "
                    "forward within torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or take view='eval', which does "
                    "that, or mode 'detached'"
                )
            self._proven = True
        return grid_mean(at_least_float32(self.layer.fold(gradient))) / scale

    def _evaluated(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        with untouched(self.network), sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            logits = self._model.select(self.network(*args, **kwargs))
        return logits, self._watch.take()[1][0]

    def close(self) -> None:
        """Takes the hooks off the network."""
        self._watch.close()


def _pooled_head(model: Model, images: Tensor, layer: Layer) -> nn.Linear | None:
    """Returns the linear layer that, after pooling, makes the logits of the layer's grid; None: more comes in between.

    It is looked for with weights that are shaken. A block that is the identity at first (residuals that begin at zero,
    a batch norm that has seen nothing) is not to pass for nothing at all.
    """
    twin, generator = copy.deepcopy(model.module), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=spread or 0.1)
        for buffer in twin.buffers():
            if buffer.is_floating_point():  # variances stay positive
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator).to(buffer)).abs_()
    shaken = replace(model, module=twin)
    with untouched(twin):
        pass_ = Pass(shaken, shaken.prepared(images), [twin_layer := bind(layer, twin)])
        means = grid_mean(pass_.activations(twin_layer))
        head = linear_head(twin, means, pass_.output, 3e-2 if pass_.half else 1e-4)
    name = next((name for name, module in twin.named_modules() if module is head), None)
    real_head = None if name is None else model.module.get_submodule(name)
    return real_head if isinstance(real_head, nn.Linear) else None


def class_weights(head: nn.Linear, classes: Tensor) -> Tensor:
    """Returns the linear layer's weights of a class per image. (N,) -> (N, C)

    Of a single logit the classes are -z and z.
    """
    weight = at_least_float32(head.weight)
    return class_logits(weight.T).T[classes]


def _ends(gradient: Tensor) -> bool:
    """Returns whether a backward through this gradient meets an operator without one."""
    left, visited = [gradient.grad_fn], set[Any]()
    while left:
        node = left.pop()
        if node is None or node in visited:
            continue
        if node.name().endswith("NotImplemented"):
            return True
        visited.add(node)
        left += [following for following, _ in node.next_functions]
    return False


def _cells(activations: Tensor) -> int:
    return activations[0, 0].numel()
