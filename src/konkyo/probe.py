"""Pass and Probe: one forward with layers captured, and the same forward seen from one target.

A method names what it needs; the Probe computes it when first asked, and whatever targets and methods can share
belongs to the Pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from konkyo.errors import KonkyoError, NotApplicable
from konkyo.layer import Layer, Replay, capture, measured_outputs
from konkyo.target import Target
from konkyo.tensors import grid_mean

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Vary: TypeAlias = Callable[[int, Tensor], Tensor]
"""(image index, variant indices (v,)) -> the variants (v, C, *grid)."""


class Rescore(Protocol):
    """`Probe.rescore`, as a method's parameter."""

    def __call__(
        self, count: int, *, inputs: Vary | None = ..., activations: Vary | None = ..., where: Tensor | None = ...
    ) -> Tensor:
        """Scores of variants (N, count)."""


class Regrad(Protocol):
    """`Probe.regrad`, as a method's parameter."""

    def __call__(self, weights: Tensor, *, inputs: Vary | None = ..., activations: Vary | None = ...) -> Tensor:
        """The weighted sum of variants' gradients (N, C, *grid)."""


CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 256 * 2**20, 2 * 2**30
"""Memory that the largest module output of a chunk of variants, with its working space, may take: beyond it larger
batches are no faster. On a GPU no more than half of what is free."""
_WORKING_COPIES = 6  # a convolution holds input, output and a workspace of the order of both


Outputs: TypeAlias = dict[int, list[tuple[Tensor, Tensor]]]
"""What the network put out for an image's variants: image index -> [(variant indices, output)]."""


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
    """

    def __init__(
        self,
        network: Network,
        images: Tensor,
        layers: Sequence[Layer] = (),
        *,
        differentiable: Sequence[Layer] = (),
        precision: Precision | None = None,
    ) -> None:
        self.network = network
        self._autocast = _autocast_arguments(images.device.type, precision)
        self._layers, self._differentiable = tuple(layers), tuple(differentiable)
        self._gradients: list[tuple[tuple[Target, ...], list[Tensor]]] = []
        with self.forwards(), torch.no_grad(), capture(self._layers, leaves=self._differentiable) as captured:
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

    def _differentiate(self, targets: Sequence[Target]) -> list[Tensor]:
        """d score / d output of every differentiable layer, in the modules' own form."""
        raws = [self._raw[layer] for layer in self._differentiable]
        found: Sequence[Tensor | None] = [None] * len(raws)  # where nothing after the layers leads to the output
        with self.forwards(), torch.enable_grad():
            score = scores(self.output, targets).sum()
            if score.requires_grad:
                found = torch.autograd.grad(score, raws, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(raw) if g is None else g for raw, g in zip(raws, found, strict=True)]


class Probe:
    """A Pass seen from one target per image, at one layer. Its public names are what a method may ask for.

    `outputs` is a store that Probes of other targets share, where a method's variants do not depend on the target: the
    first of them fills it with what the network puts out for the variants, the others only score that.
    """

    def __init__(
        self,
        pass_: Pass,
        targets: Sequence[Target],
        layer: Layer,
        *,
        seed: int = 0,
        outputs: Outputs | None = None,
    ) -> None:
        self._pass, self._targets, self._layer, self._seed = pass_, tuple(targets), layer, seed
        self._outputs = outputs

    @property
    def inputs(self) -> Tensor:
        """The preprocessed images (N, C, *size)."""
        return self._pass.images

    @cached_property
    def score(self) -> Tensor:
        """The explained score of every image (N,)."""
        return scores(self._pass.output.detach(), self._targets)

    @cached_property
    def activations(self) -> Tensor:
        """The layer's output as a grid (N, C, *grid)."""
        return self._pass.activations(self._layer)

    @cached_property
    def gradients(self) -> Tensor:
        """d score / d activations (N, C, *grid)."""
        return self._pass.gradients(self._targets, self._layer)

    @property
    def generator(self) -> torch.Generator:
        """A fresh random generator on the CPU with the call's seed: every method draws the same numbers anywhere."""
        return torch.Generator().manual_seed(self._seed)

    @cached_property
    def class_weights(self) -> Tensor:
        """How much each channel's mean counts for the score (N, C), where the head is global average pooling + linear.

        NotApplicable: what follows the layer is something else.
        """
        head = self._linear_head
        if head is None:
            raise NotApplicable(
                f"needs global average pooling and one linear layer right after the layer; "
                f"what follows {self._layer.name!r} is something else (grad_cam works for any head)"
            )
        output = self._pass.output.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(scores(output, self._targets).sum(), output)
        return gradient @ real(head)

    @cached_property
    def ablated_score(self) -> Tensor:
        """The score with one channel of the activations set to zero, for every channel (N, C)."""
        head, activations = self._linear_head, self.activations
        count = activations.shape[1]
        if head is None:

            def without(image: int, channels: Tensor) -> Tensor:
                variants = activations[image].expand(len(channels), *activations.shape[1:]).clone()
                variants[torch.arange(len(channels), device=variants.device), channels] = 0
                return variants

            alive = activations.flatten(2).any(2)  # the others are zero already
            return torch.where(
                alive, self.rescore(count, activations=without, where=alive), self.score.to(activations)[:, None]
            )
        # The output is linear in the channels' means, so each channel's share is known without a forward.
        means, output = grid_mean(activations), self._pass.output.detach()
        share = real(head).T  # (C, K)
        return torch.stack([self._targets[i](output[i] - means[i, :, None] * share) for i in range(len(means))])

    def rescore(
        self,
        count: int,
        *,
        inputs: Vary | None = None,
        activations: Vary | None = None,
        where: Tensor | None = None,
    ) -> Tensor:
        """Scores (N, count) of `count` variants of every image, or of its activations.

        `inputs(i, k)` builds the variants `k` (indices) of image `i` when their chunk's turn comes, so that no more
        than a chunk is ever held; the network may overwrite them. Variants of activations replay only what follows the
        layer. `where` (N, count) bool leaves variants out: their score is -inf.
        """
        result = self.score.new_full((len(self.inputs), count), -torch.inf)
        store, self._outputs = self._outputs, None  # a second call's variants may follow from the first one's scores
        for image, target in enumerate(self._targets):
            if store is not None and image in store:
                outputs: Iterable[tuple[Tensor, Tensor]] = store[image]
            else:
                todo = torch.arange(count, device=result.device) if where is None else where[image].nonzero()[:, 0]
                make, run, outside = self._variants(image, inputs, activations)
                outputs = self._chunked(todo, make, torch.no_grad()(run), outside)
                if store is not None:
                    outputs = store[image] = list(outputs)
            for chunk, output in outputs:
                result[image, chunk] = target(output).to(result)
        return result

    def regrad(self, weights: Tensor, *, inputs: Vary | None = None, activations: Vary | None = None) -> Tensor:
        """The weighted sum over variants of d score / d variant (N, C, *grid).

        `weights` (count,) weighs the `count` variants; the rest is as in `rescore`.
        """
        totals = []
        for image, target in enumerate(self._targets):
            make, run, outside = self._variants(image, inputs, activations)

            def gradients(variants: Tensor, run: Callable[[Tensor], Tensor] = run, target: Target = target) -> Tensor:
                with torch.inference_mode(False), torch.enable_grad():
                    leaf = variants.detach().requires_grad_()
                    score = target(run(leaf.clone())).sum()
                    (found,) = torch.autograd.grad(score, leaf, allow_unused=True)
                return torch.zeros_like(leaf) if found is None else real(found)

            total: Tensor | None = None
            todo = torch.arange(len(weights), device=self.inputs.device)
            for chunk, found in self._chunked(todo, make, gradients, outside, graph=True):
                part = torch.einsum("v,v...->...", weights.to(found)[chunk], found)
                total = part if total is None else total + part
            if total is None:
                raise KonkyoError("regrad needs at least one variant")
            totals.append(total)
        return torch.stack(totals)

    # --- how variants are run -----------------------------------------------------------------------------------------

    def _variants(
        self, image: int, inputs: Vary | None, activations: Vary | None
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], frozenset[nn.Module]]:
        """(indices -> variants, variants -> output, modules that do not run for variants) of one image."""
        vary = activations if inputs is None else inputs
        if vary is None or (inputs is not None and activations is not None):
            raise KonkyoError("rescore and regrad take either inputs= or activations=, exactly one of them")
        if inputs is not None or self._layer.module is None:
            return partial(vary, image), self._pass.forward, frozenset()
        once = replace(self._layer, call=self._layer.call % self._pass.calls[self._layer])
        root, picture = self._pass.network.module, self.inputs[image : image + 1]
        replay = Replay(self._pass.forward, once, root, picture)
        return partial(vary, image), replay, replay.stubbed

    def _chunked(
        self,
        todo: Tensor,
        make: Callable[[Tensor], Tensor],
        run: Callable[[Tensor], Tensor],
        outside: frozenset[nn.Module],
        *,
        graph: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, what `run` gives for their variants), one chunk after the other, as large as memory allows.

        The first variant runs on its own: it shows how much memory a variant takes, and whether the network accepts
        the channels_last format (faster where it does; `view` fails on it where it does not).
        """
        if not len(todo):
            return
        first, memory_format = make(todo[:1]), torch.contiguous_format
        with measured_outputs(self._pass.network.module, outside) as outputs:
            try:
                memory_format = torch.channels_last if first.ndim == 4 else torch.contiguous_format
                found = run(first.contiguous(memory_format=memory_format))
            except RuntimeError:
                memory_format = torch.contiguous_format
                found = run(first.contiguous())
        yield todo[:1], found
        largest = max(outputs.largest, first.numel() * first.element_size())
        needed = outputs.total if graph else _WORKING_COPIES * largest
        for chunk in torch.split(todo[1:], max(1, _free_bytes(first.device) // needed)):
            yield chunk, run(make(chunk).contiguous(memory_format=memory_format))

    @cached_property
    def _linear_head(self) -> Tensor | None:
        """The weight (K, C) of the linear layer that follows the mean over the grid; None if the head is not that."""
        if self._layer.module is None or self._pass.output.ndim != 2:
            return None
        means, output = grid_mean(self.activations), self._pass.output.detach()
        tolerance = 3e-2 if self._pass.half else 1e-4
        for linear in reversed([m for m in self._pass.network.module.modules() if isinstance(m, nn.Linear)]):
            if (linear.out_features, linear.in_features) != (output.shape[1], means.shape[1]):
                continue
            bias = 0 if linear.bias is None else real(linear.bias.detach())
            again = means @ real(linear.weight.detach()).T + bias
            if ((again - output).abs() <= tolerance * output.abs().amax()).all():
                return linear.weight.detach()
        return None


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


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_CHUNK_BYTES
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(GPU_CHUNK_BYTES, (torch.cuda.mem_get_info(device)[0] + reusable) // 2)
