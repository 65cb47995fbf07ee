"""Pass: one forward of a network with layers captured, and the backwards of its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from konkyo.errors import KonkyoError
from konkyo.layer import Layer, capture
from konkyo.target import Target

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]


class Network(Protocol):
    """What a Pass needs of a model: its module tree, and a call `images -> output` (first dimension: the images)."""

    @property
    def module(self) -> nn.Module:
        """The module tree that holds the layers."""

    def __call__(self, images: Tensor) -> Tensor:
        """The output for a batch of images."""


def real(tensor: Tensor) -> Tensor:
    """At least single precision: sums over half-precision activations are done in fp32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class Pass:
    """One forward of the network on `images` (N, C, *size) with `layers` captured.

    Everything before the first of `differentiable` runs without a graph. `precision=None` keeps the caller's autocast
    state; "bf16" and "fp16" run every forward of this Pass under autocast. Methods always compute in fp32 or better.
    `within` is entered for the forward; what it yields is kept as `recorded`.
    """

    def __init__(
        self,
        network: Network,
        images: Tensor,
        layers: Sequence[Layer] = (),
        *,
        differentiable: Sequence[Layer] = (),
        precision: Precision | None = None,
        within: Sequence[Callable[[nn.Module], AbstractContextManager[object]]] = (),
    ) -> None:
        self.network = network
        self._autocast = _autocast_arguments(images.device.type, precision)
        self._layers, self._differentiable = tuple(layers), tuple(differentiable)
        self._gradients: list[tuple[tuple[Target, ...], list[Tensor]]] = []
        self._others: dict[object, Pass] = {}
        with (
            self.forwards(),
            torch.no_grad(),
            capture(self._layers, leaves=self._differentiable) as captured,
            ExitStack() as entered,
        ):
            self.recorded = {enter: entered.enter_context(enter(network.module)) for enter in within}
            self.images = images.clone() if images.is_inference() else images.detach()
            leaf = self.images
            if any(layer.module is None for layer in self._differentiable):
                leaf = self.images.detach().requires_grad_()
                torch.set_grad_enabled(True)
            output = network(leaf.clone())
            self._raw = {layer: leaf if layer.module is None else captured.raw(layer) for layer in self._layers}
            self.calls = {layer: len(captured.calls.get(layer, ())) for layer in self._layers}
            self.output, self.half = real(output), output.element_size() < 4
        if self.output.shape[0] != len(images):
            raise KonkyoError(f"{len(images)} images went in, but the output has shape {tuple(self.output.shape)}")

    @contextmanager
    def forwards(self) -> Iterator[None]:
        """The state in which this Pass runs the network: its autocast, whatever the caller's is by then."""
        grad = torch.is_grad_enabled()  # leaving inference mode would switch it on
        with torch.inference_mode(False), torch.set_grad_enabled(grad), torch.autocast(**self._autocast):  # type: ignore[arg-type]
            yield

    def forward(self, images: Tensor) -> Tensor:
        """The network's output on other images, in the state of this Pass."""
        with self.forwards():
            return real(self.network(images.to(self.images.dtype)))

    def other(
        self,
        key: object,
        layer: Layer | None,
        within: Callable[[nn.Module], AbstractContextManager[object]],
        images: Tensor | None = None,
    ) -> Pass:
        """A Pass on the same images (or others) run another way, with `layer` its leaf; one per `key` is kept.

        `layer=None`: `within` makes the leaf.
        """
        kept = self._others.get((key, layer))
        if kept is None or (images is not None and not torch.equal(images, kept.images)):
            layers = () if layer is None else (layer,)
            with self.forwards():
                kept = Pass(
                    self.network,
                    self.images if images is None else images,
                    layers,
                    differentiable=layers,
                    within=(within,),
                )
            self._others[key, layer] = kept
        return kept

    def activations(self, layer: Layer) -> Tensor:
        """What the layer put out, (N, C, *grid), detached."""
        return real(layer.fold(self._raw[layer].detach()))

    def gradients(self, targets: Sequence[Target], layer: Layer) -> Tensor:
        """d score / d activations (N, C, *grid); one backward serves all differentiable layers of this Pass."""
        key = tuple(targets)
        found = next((gradients for known, gradients in self._gradients if known == key), None)
        if found is None:
            found = self._differentiate(key)
            self._gradients.append((key, found))
        return real(layer.fold(found[self._differentiable.index(layer)]))

    def gradients_at(self, score: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """d score(output) / d tensors of the graph, of any function of the output; 0 where it depends on none."""
        return self._backward(score, tensors)

    def gradients_of(self, score: Callable[[Tensor], Tensor], layer: Layer) -> Tensor:
        """d score(output) / d activations (N, C, *grid) of any function of the output."""
        return real(layer.fold(self._backward(score, [self._raw[layer]])[0]))

    def curvature(self, targets: Sequence[Target], layer: Layer, vectors: Tensor) -> Tensor:
        """The Hessian of the score with respect to the layer's activations, times `vectors` (N, C, *grid)."""
        raw = self._raw[layer]
        with torch.enable_grad():
            (gradient,) = self._backward(lambda output: scores(output, targets), [raw], create_graph=True)
            slope = (layer.fold(gradient) * vectors).sum()
            found = torch.autograd.grad(slope, raw, allow_unused=True, retain_graph=True)[0] if slope.grad_fn else None
        return real(layer.fold(torch.zeros_like(raw) if found is None else found))

    def _differentiate(self, targets: Sequence[Target]) -> list[Tensor]:
        """d score / d output of every differentiable layer, in the modules' own form."""
        return self._backward(
            lambda output: scores(output, targets), [self._raw[item] for item in self._differentiable]
        )

    def _backward(
        self, score: Callable[[Tensor], Tensor], raws: Sequence[Tensor], *, create_graph: bool = False
    ) -> list[Tensor]:
        found: Sequence[Tensor | None] = [None] * len(raws)  # where nothing after the layers leads to the output
        with self.forwards(), torch.enable_grad():
            total = score(self.output).sum()
            if total.requires_grad:
                found = torch.autograd.grad(
                    total, raws, retain_graph=True, allow_unused=True, create_graph=create_graph
                )
        return [torch.zeros_like(raw) if g is None else g for raw, g in zip(raws, found, strict=True)]


def scores(output: Tensor, targets: Sequence[Target]) -> Tensor:
    """One target per row of the output -> (N,)."""
    if len(set(map(id, targets))) == 1 or all(target == targets[0] for target in targets):
        found = targets[0](output)
    else:
        found = torch.cat([target(output[i : i + 1]) for i, target in enumerate(targets)])
    if found.shape != (len(output),):
        raise KonkyoError(f"a target gives one score per image, shape ({len(output)},); got {tuple(found.shape)}")
    return found


def _autocast_arguments(device: str, precision: Precision | None) -> dict[str, object]:
    if precision not in (None, "fp32", "bf16", "fp16"):
        raise KonkyoError(f"precision is 'fp32', 'bf16', 'fp16' or None (as the caller's autocast); got {precision!r}")
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision is None:
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    else:
        enabled, dtype = precision in kinds, kinds.get(precision, torch.get_autocast_dtype(device))
    return {"device_type": device, "dtype": dtype, "enabled": enabled}
