"""Maps of a network in training: maps with a graph to the weights."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from konkyo.engine.capture import Watch, capture, untouched
from konkyo.engine.forward import Pass, rounds
from konkyo.engine.layer import Layer, bind, linear_head
from konkyo.engine.session import outside_inference
from konkyo.errors import KonkyoError, unknown
from konkyo.methods.base import Method
from konkyo.models import Model, as_model
from konkyo.targets.classes import class_logits
from konkyo.training.differentiable import evidence, trainable
from konkyo.utils.tensors import at_least_float32, grid_mean, weigh

Mode: TypeAlias = Literal["auto", "closed_form", "autograd", "detached"]
MODES: tuple[Mode, ...] = ("auto", "closed_form", "autograd", "detached")
View: TypeAlias = Literal["train", "eval"]


class TrainingMaps:
    """Maps of a class of every image, of the network's last forward, to be differentiated.

    Made once for a network, in any wrapper, and the shape (C, H, W) of its images; called after each forward. `layer`
    as in `konkyo.explain`; None: the automatic one. `method`: Grad-CAM (Selvaraju et al., 2017, Eq. 1), or any method
    whose map is a differentiable function of the layer's activations and the logit's gradient there
    (`konkyo.training.differentiable`). `mode`:

    - "closed_form": W_c / (h w) is the gradient, for a head of global average pooling and one linear layer. The maps
      are without dropout's mask, as in evaluation. No backward.
    - "autograd": one gradient of the batch's scores, with a graph through it (`create_graph`), for any head. What
      follows the layer runs with the attention that has a second derivative, which is slower than the others.
    - "detached": that gradient as a constant.
    - "auto": "closed_form" where the head is found to be of that kind, else "autograd".

    `view`: "train", of the forward that the caller made, batch statistics, dropout and all; or "eval", of another one
    in eval mode, which costs a forward and its backward. The hooks stay on the network until `close`.

    Under `no_grad` maps are numbers without a graph, of a forward that may have been without gradients, too. Where
    these are needed, what was given to the network is run again, in eval mode.

    KonkyoError: an unknown mode or a method that cannot be trained, a layer without a grid, "closed_form" for another
    head.
    """

    def __init__(
        self,
        model: Model | nn.Module,
        shape: Sequence[int],
        *,
        layer: str | nn.Module | Layer | None = None,
        mode: Mode = "auto",
        view: View = "train",
        method: str | Method = "grad_cam",
    ) -> None:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        if view not in ("train", "eval"):
            raise unknown("view", view, ("train", "eval"))
        self.method = trainable(method)
        adapted = as_model(model)
        self._model, self._view, self.network = adapted, view, adapted.module
        self.layer = adapted.layer(layer, shape)
        if self.layer.module is None or self.layer.level is None:
            raise KonkyoError(f"training needs a layer with one feature grid; {self.layer.name!r} has none")
        noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        with untouched(self.network):
            pass_ = Pass(adapted, adapted.prepared(noise), [self.layer])
        self.grid: tuple[int, ...] = tuple(pass_.activations(self.layer).shape[2:])
        self.classes = class_logits(_columns(pass_.output, adapted.name)).shape[1]
        self.mode: Mode = mode
        self._head = self._found_head(noise)
        self._proven = False
        self._watch = Watch(self.network, self.layer, twice=self.mode == "autograd" and view == "train")

    def _found_head(self, noise: Tensor) -> nn.Linear | None:
        """Returns the head of a closed form, and settles the mode."""
        reads_head = "class_weights" in self.method.needs
        if self.mode in ("autograd", "detached"):
            if reads_head:
                raise KonkyoError(
                    f"{self.method.name!r} reads the weights of the head and no gradient: its mode is 'closed_form'"
                )
            return None
        head = _pooled_head(self._model, noise, self.layer)
        if head is None and (reads_head or self.mode == "closed_form"):
            raise KonkyoError(
                f"closed_form needs global average pooling and one linear layer after the layer; what follows "
                f"{self.layer.name!r} of {self._model.name} is something else: "
                f"{'method' if reads_head else 'mode'} '{'grad_cam' if reads_head else 'autograd'}' takes any head"
            )
        self.mode = "autograd" if head is None else "closed_form"
        return head

    def __call__(self, logits: Tensor, classes: Tensor, images: Tensor | None = None) -> Tensor:
        """Returns the map of one class per image, at least fp32, as the method defines it.

        (N, K), (N,) int64 -> (N, h, w). `logits` are what the network made of the batch in its last forward. `images`
        (R,) int64: `classes` (R,) are of these images, each any number of times -> (R, h, w). KonkyoError: that forward
        was not differentiated and gradients are enabled now, or its output went through something that stops
        gradients; logits of another forward.
        """
        forward, graph = self._watch.last(), torch.is_grad_enabled()
        (raw,), logits = forward.tensors, _columns(logits, self._model.name)
        if graph and not forward.graph:
            raise KonkyoError(
                "the last forward was without gradients, and here they are enabled: run the network with gradients "
                "enabled, or this under torch.no_grad() too"
            )
        _check_pair(logits, forward.output, raw)
        with outside_inference(), torch.set_grad_enabled(graph):
            classes, images = tree_map(_outside, (classes, images))
            if self._view == "eval" or (not forward.graph and self.mode != "closed_form"):
                logits, raw = self._again(forward.args, forward.kwargs, graph)
            activations = self.layer.fold(raw)
            count = len(logits) if images is None else len(images)
            if len(classes) != count or len(activations) != len(logits):
                raise KonkyoError(
                    f"logits and a label of each image of the last forward were expected: {len(activations)} images "
                    f"went in; got logits of {len(logits)} and {len(classes)} labels"
                )
            with torch.autocast(raw.device.type, enabled=False):
                return self._maps(logits, raw, activations, classes, images)

    def _maps(self, logits: Tensor, raw: Tensor, activations: Tensor, classes: Tensor, images: Tensor | None) -> Tensor:
        """Returns the maps (R, h, w) of classes of images."""
        grids = at_least_float32(activations if images is None else activations[images])
        if self.mode == "closed_form":
            assert self._head is not None
            weights = class_weights(self._head, classes)
            if self.method.name == "grad_cam":  # so that no gradients are laid out on the grid
                return weigh(weights / _cells(grids), grids).relu()
            spread = (weights / _cells(grids)).view(*weights.shape, *[1] * (grids.ndim - 2)).expand_as(grids)
            return evidence(self.method, {"activations": grids, "gradients": spread, "class_weights": weights})
        gradients = self._gradients(logits, raw, classes, images)
        if self.method.name == "grad_cam":
            return weigh(grid_mean(gradients), grids).relu()
        return evidence(self.method, {"activations": grids, "gradients": gradients})

    def _gradients(self, logits: Tensor, raw: Tensor, classes: Tensor, images: Tensor | None) -> Tensor:
        """Returns d logit of the class / d activations (R, C, *grid): all samples' from one gradient of a sum.

        Samples do not depend on each other after the layer, unless batch statistics are taken there; in view "eval"
        they never do. Where images have several classes there is a gradient for the first ones, the second ones, ...
        """
        if images is None:
            return self._slope(logits, raw, classes, torch.arange(len(classes), device=classes.device))
        parts = rounds(tuple(images.tolist()))
        slopes = [self._slope(logits, raw, classes[part], images[part])[images[part]] for part in parts]
        if not slopes:
            return at_least_float32(self.layer.fold(raw))[images] * 0
        order = torch.tensor([row for part in parts for row in part], device=images.device)
        return torch.cat(slopes)[order.argsort()]

    def _slope(self, logits: Tensor, raw: Tensor, classes: Tensor, images: Tensor) -> Tensor:
        """Returns the gradient of the sum of a class's logit of each of the images, at the layer (N, C, *grid)."""
        # Times the number of cells, for in half precision the gradient of a mean would vanish; but within its range.
        scale = min(_cells(self.layer.fold(raw)), 1 << 14)
        create = self.mode == "autograd" and torch.is_grad_enabled()
        try:
            with torch.enable_grad(), self._kernels(create):
                score = class_logits(logits)[images, classes].sum() * scale
                (gradient,) = torch.autograd.grad(score, raw, create_graph=create, retain_graph=True)
        except RuntimeError as error:
            raise KonkyoError(
                f"the logits cannot be differentiated by the layer {self.layer.name!r} ({str(error).splitlines()[0]}). "
                "Under torch.compile use view='eval', which runs the network as it is, or a head of pooling and a "
                "linear layer"
            ) from error
        if create and not self._proven:
            if _ends(gradient):
                raise KonkyoError(
                    f"what follows the layer {self.layer.name!r} has no second derivative: attention of a library's "
                    "own, perhaps (of transformers, attn_implementation='sdpa' or 'eager' has one); or take mode "
                    "'detached'"
                )
            self._proven = True
        return at_least_float32(self.layer.fold(gradient)) / scale

    def _again(self, args: tuple[Any, ...], kwargs: dict[str, Any], graph: bool) -> tuple[Tensor, Tensor]:
        """Runs the network once more in eval mode -> (its logits, what the layer puts out)."""
        args, kwargs = tree_map(_outside, (args, kwargs))
        leaves = [] if graph else [self.layer]
        with untouched(self.network), capture([self.layer], leaves=leaves) as captured, self._kernels(graph):
            logits = _columns(self._model.select(self.network(*args, **kwargs)), self._model.name)
        return logits, captured.raw(self.layer)[0]

    def _kernels(self, twice: bool) -> ExitStack:
        """Returns a context in which attention has a second derivative, if one is wanted: it is the slowest kind."""
        stack = ExitStack()
        if twice and self.mode == "autograd":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack

    def close(self) -> None:
        """Takes the hooks off the network."""
        self._watch.close()


def _columns(logits: Tensor, name: str) -> Tensor:
    """Returns logits (N, K); of one logit per image (N,) that column. KonkyoError: an output of another shape."""
    if logits.ndim == 1:
        return logits[:, None]
    if logits.ndim != 2:
        raise KonkyoError(f"logits (N, K) were expected of {name}; got shape {tuple(logits.shape)}")
    return logits


def _outside(value: Any) -> Any:
    """Returns what was given to a network; of a tensor that was made in inference mode, a copy that is not."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _check_pair(logits: Tensor, output: Any, raw: Tensor) -> None:
    """Raises KonkyoError where logits are of another forward than the output: where neither memory, graph nor values
    tell that they come from it.

    Logits of the output's memory or graph are found at once; only others are compared, which waits for the device. Of
    a compiled network there is no output to compare with.
    """
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not tensors:
        return
    result = next((t for t in tensors if t.data_ptr() == logits.data_ptr() and t.numel() >= logits.numel()), None)
    if result is None:
        nodes = {t.grad_fn for t in tensors if t.grad_fn is not None}
        if logits.grad_fn is not None and nodes:
            result = logits if _reaches(logits, nodes) else None
        else:
            result = next((t for t in tensors if _alike(t, logits)), None)
    if result is None:
        raise KonkyoError(
            "these logits are not of the network's last forward, whose maps these would be: ask for the maps right "
            "after each forward, or run both batches as one (torch.cat)"
        )
    if not raw.requires_grad and any("CheckpointFunction" in node.name() for node in _ancestors(logits)):
        raise KonkyoError(
            "what a reentrant checkpoint ran has no graph to the layer: use torch.utils.checkpoint with "
            "use_reentrant=False"
        )


def _alike(output: Tensor, logits: Tensor) -> bool:
    """Tells whether logits have the values of an output, to the rounding of 16 bits."""
    output, logits = output.detach(), logits.detach()
    if output.numel() != logits.numel():
        return False
    other = output.reshape(logits.shape).to(logits)
    return torch.allclose(other, logits, rtol=1e-2, atol=1e-2 * float(logits.abs().nan_to_num().amax()), equal_nan=True)


def _reaches(tensor: Tensor, nodes: set[Any]) -> bool:
    """Returns whether a backward from the tensor meets one of these nodes of the graph."""
    return any(node in nodes for node in _ancestors(tensor))


def _ancestors(tensor: Tensor) -> Iterator[Any]:
    """Yields the nodes of the graph that a backward from the tensor meets, the nearest first."""
    left, visited = deque([tensor.grad_fn]), set[Any]()
    while left:
        node = left.popleft()
        if node is None or node in visited:
            continue
        visited.add(node)
        yield node
        left.extend(following for following, _ in node.next_functions)


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
        head = linear_head(twin, means, _columns(pass_.output, model.name), 3e-2 if pass_.half else 1e-4)
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
    return any(node.name().endswith("NotImplemented") for node in _ancestors(gradient))


def _cells(activations: Tensor) -> int:
    return activations.shape[2:].numel()
