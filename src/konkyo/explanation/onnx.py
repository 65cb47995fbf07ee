"""Networks as ONNX files that put out a map beside their output, for machines without torch."""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.engine.attention import explicit_attention
from konkyo.engine.attention_reader import tokens_on_grid
from konkyo.engine.capture import capture
from konkyo.engine.forward import Pass
from konkyo.engine.layer import Layer, exchanged, head_weight, linear_head, tensors_of
from konkyo.engine.probe import Probe
from konkyo.engine.session import hook_after, outside_inference, untouched
from konkyo.errors import KonkyoError, NotApplicable, install_hint, unknown
from konkyo.explanation.explain import explain
from konkyo.methods.base import find
from konkyo.models import Model, as_model
from konkyo.models.onnx import CLASSES, PREPROCESS, import_onnxruntime
from konkyo.targets.classes import ClassTarget

_SQUARINGS = 10
"""So often is the Gram matrix of `eigen_cam` squared: its other components shrink by (l_2 / l_1)^1024."""
_TOLERANCE = 1e-3
"""How far a map of the file may lie from that of `explain`, as a share of its largest value."""


def export_cam(
    model: Model | nn.Module,
    path: str | os.PathLike[str],
    *,
    method: str = "eigen_cam",
    layer: str | nn.Module | None = None,
    target: int | str | None = None,
    size: int | tuple[int, int] | None = None,
) -> Path:
    """Writes an ONNX file of a classifier whose second output is the map of its decision, and returns its path.

    The file takes prepared images "images" (N, C, H, W), any N, and puts out "logits" (N, K) and "maps" (N, h, w), on
    the layer's grid, after the ReLU where the method has one. `method`: "eigen_cam", "cam", "grad_cam" (with global
    average pooling and one linear layer after the layer), "recipro_cam" or "attention_rollout", none of which needs a
    backward. `target`: the class that is always explained; None: the highest of each image. `size`: H and W; None: as
    the preprocessing makes them. Class names and preprocessing are in the file, so that `konkyo.load(path)` knows them.

    The file is run by onnxruntime on images of noise, and its logits and maps are held against the model's own.
    NotApplicable: a method, or a layer, that cannot be written so. KonkyoError: the libraries of the extra "onnx" are
    not installed, a network that cannot be exported, or a file that gives other numbers.
    """
    runtime, _ = import_onnxruntime(), _import_onnxscript()
    adapted = as_model(model)
    if method not in _MAPS:
        raise unknown("method that ONNX files can hold", method, _MAPS)
    shape = (3 if adapted.preprocess is None else len(adapted.preprocess.mean), *_sides(adapted, size))
    chosen = adapted.layer(layer, shape)
    noise = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = adapted.prepared(noise)
    index = adapted.class_index(target) if isinstance(target, str) else target
    to = Path(path)
    to.resolve().parent.mkdir(parents=True, exist_ok=True)
    with untouched(adapted.module, 0), outside_inference(), torch.no_grad():
        network = MappedNetwork(adapted, chosen, _MAPS[method](adapted, chosen, images[:1]), index, method)
        expected = network(images)
        temporary = to.resolve().with_name(f".{to.name}.{os.getpid()}-{get_ident()}.onnx")
        try:
            _export(network, images[:2], temporary, adapted)
            _check(runtime, temporary, images, expected)
            del network
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    try:
        result = explain(adapted, images, method=method, layer=layer, target=index, seed=0)
        _require_equal("maps", expected[1], result.maps)
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)
    return to


def _import_onnxscript() -> Any:
    try:
        import_module("onnx")
        return import_module("onnxscript")
    except ImportError as error:
        raise KonkyoError(f"writing ONNX files needs onnx and onnxscript: {install_hint('onnx')}") from error


def _sides(model: Model, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Returns the height and width of prepared images. KonkyoError: nothing says them."""
    preprocess = model.preprocess
    if size is None and preprocess is not None:
        fixed = preprocess.crop is not None or isinstance(preprocess.resize, tuple)
        size = preprocess.side if fixed else None
    if size is None:
        raise KonkyoError(f"the size of images for {model.name} is not fixed; give size=, as in size=224")
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise KonkyoError(f"size is a number of pixels, or (height, width); got {size!r}")
    return sides


class MappedNetwork(nn.Module):
    """A network that puts out (logits (N, K), maps (N, h, w)) for prepared images (N, C, H, W)."""

    def __init__(
        self, model: Model, layer: Layer, read: Callable[[_Forward], Tensor], index: int | None, method: str
    ) -> None:
        super().__init__()
        self.network = model.module
        self._model, self._layer, self._read, self._index = model, layer, read, index
        self._rectified = find(method).rectified

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits and the maps."""
        forward = _Forward(self._model, self._layer, images, self._index)
        maps = self._read(forward)
        return forward.output, maps.relu() if self._rectified else maps


class _Forward:
    """One forward of a model, with what a layer put out and the class that is explained."""

    def __init__(self, model: Model, layer: Layer, images: Tensor, index: int | None) -> None:
        self.model, self.layer, self.images = model, layer, images
        with capture([layer]) as captured:
            self.output = self.run(images)
        self.activations = layer.fold(captured.raw(layer)[0])
        ranked = self.output.argmax(1)
        self.index = ranked if index is None else torch.full_like(ranked, index)

    def run(self, images: Tensor) -> Tensor:
        """Returns the output for images."""
        module = self.model.module
        output = module(images) if self.model.call is None else self.model.call(module, images)
        return self.model.select(output)

    def again(self, grids: Tensor, images: Tensor) -> Tensor:
        """Returns the output for images whose grid at the layer is another."""

        def exchange(_module: nn.Module, _args: Any, output: Any) -> Any:
            tensors = tensors_of(output, self.layer)
            return exchanged(output, tensors, [self.layer.unfold(grids, tensors[0])])

        assert self.layer.module is not None
        handle = hook_after(self.layer.module, exchange)
        try:
            return self.run(images)
        finally:
            handle.remove()


Build = Callable[[Model, Layer, Tensor], Callable[[_Forward], Tensor]]
_MAPS: dict[str, Build] = {}
"""What makes the maps (N, h, w) of a forward, by method: a function of (model, layer, one image) builds it."""


def _map(build: Build) -> Build:
    _MAPS[build.__name__.strip("_")] = build
    return build


@_map
def _eigen_cam(model: Model, layer: Layer, image: Tensor) -> Callable[[_Forward], Tensor]:
    """The first component by repeated squaring of a Gram matrix, as ONNX has no eigenvectors."""
    del model, layer, image

    def maps(forward: _Forward) -> Tensor:
        grids = forward.activations
        matrix = grids.flatten(2).mT
        matrix = matrix / matrix.abs().amax((1, 2), keepdim=True).clamp_min(1e-12)
        gram = matrix.mT @ matrix
        for _ in range(_SQUARINGS):
            gram = gram / gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30)[:, None, None]
            gram = gram @ gram
        largest = gram.diagonal(dim1=1, dim2=2).argmax(1)
        vector = gram.gather(2, largest[:, None, None].expand(-1, gram.shape[1], 1))
        vector = vector / vector.square().sum(1, keepdim=True).sqrt().clamp_min(1e-30)
        result = (grids.flatten(2).mT @ vector)[..., 0]
        peak = result.gather(1, result.abs().argmax(1, keepdim=True))
        return (result * torch.where(peak < 0, -1.0, 1.0)).reshape(-1, *grids.shape[2:])

    return maps


def _weighted(model: Model, layer: Layer, image: Tensor, *, mean: bool) -> Callable[[_Forward], Tensor]:
    """The channels weighted by the linear layer of the class. NotApplicable: the head is another."""
    forward = _Forward(model, layer, image, None)
    means = forward.activations.flatten(2).mean(2)
    head = linear_head(model.module, means, forward.output, 1e-4) if forward.output.ndim == 2 else None
    if head is None:
        raise NotApplicable(
            f"needs global average pooling and one linear layer right after the layer; what follows {layer.name!r} is "
            "something else"
        )
    weight = head_weight(head).clone()
    if mean:
        weight = weight / math.prod(forward.activations.shape[2:])
    if weight.shape[0] == 1:
        raise NotApplicable("needs a logit per class; the network has one for both")
    return lambda run: torch.einsum("nc,nc...->n...", weight[run.index], run.activations)


@_map
def _cam(model: Model, layer: Layer, image: Tensor) -> Callable[[_Forward], Tensor]:
    return _weighted(model, layer, image, mean=False)


@_map
def _grad_cam(model: Model, layer: Layer, image: Tensor) -> Callable[[_Forward], Tensor]:
    return _weighted(model, layer, image, mean=True)


@_map
def _recipro_cam(model: Model, layer: Layer, image: Tensor) -> Callable[[_Forward], Tensor]:
    """The class's probability where one cell of the grid is all there is; what comes before the layer runs once."""
    grid = _Forward(model, layer, image, None).activations.shape[2:]
    places = math.prod(grid)
    masks = torch.eye(places, device=image.device, dtype=image.dtype).view(places, 1, *grid)

    def maps(forward: _Forward) -> Tensor:
        variants = (forward.activations[:, None] * masks).flatten(0, 1)
        output = forward.again(variants, forward.images.repeat_interleave(places, 0))
        values = output.sigmoid() if model.multilabel else output.softmax(1)
        scores = values.reshape(-1, places, values.shape[1])
        index = forward.index[:, None, None].expand(-1, places, 1)
        return scores.gather(2, index)[..., 0].reshape(-1, *grid)

    return maps


@_map
def _attention_rollout(model: Model, layer: Layer, image: Tensor) -> Callable[[_Forward], Tensor]:
    """Attention followed from the tokens that the head reads, which are the same for every image."""
    pass_ = Pass(model, image, [layer])
    probe = Probe(pass_, [ClassTarget(0)], pass_.levels(layer)[0], rows=(0,), seed=0)
    readout, grid = probe.readout, probe.activations.shape[2:]
    if not torch.equal(readout, readout.round()) and not torch.allclose(readout, readout.amax().where(readout > 0, 0)):
        raise NotApplicable("the head reads the tokens by an attention of its own, which differs from image to image")

    tokens_on_grid(readout, layer, grid)  # or it does not lie there
    prefix = readout.shape[1] - math.prod(grid)
    heads = [probabilities.shape[1] for probabilities in probe.attentions]

    def maps(forward: _Forward) -> Tensor:
        with explicit_attention(model.module) as attentions:
            forward.run(forward.images)
        rows = readout.expand(forward.images.shape[0], -1)
        square = [p for p in attentions.probabilities if p.shape[-1] == p.shape[-2]]
        for probabilities, count in zip(reversed(square), reversed(heads), strict=True):
            fused = probabilities.reshape(-1, count, *probabilities.shape[-2:]).mean(1)
            share = rows / (1 + fused.sum(2))
            rows = share + torch.einsum("nq,nqk->nk", share, fused)
        return rows[:, prefix:].reshape(-1, *grid)

    return maps


def _export(network: MappedNetwork, images: Tensor, path: Path, model: Model) -> None:
    """Writes the file. KonkyoError: torch cannot export the network."""
    batch = torch.export.Dim("N", min=1, max=4096)
    with warnings.catch_warnings(), _silent("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits", "maps"],
                dynamic_shapes={"images": {0: batch}},
            )
        except KonkyoError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise KonkyoError(f"{model.name} cannot be written as an ONNX network: {reason}") from error
        assert program is not None
        metadata = program.model.metadata_props
        metadata[CLASSES] = json.dumps(list(model.classes))
        metadata[PREPROCESS] = repr(model.preprocess)
        program.save(str(path), include_initializers=True, external_data=False)


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Within the context these loggers say errors alone."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check(runtime: Any, path: Path, images: Tensor, expected: Sequence[Tensor]) -> None:
    """Raises KonkyoError where a file gives other numbers than the network, for one image or several."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, len(images)):
        try:
            values = session.run(["logits", "maps"], {"images": images[:count].float().cpu().numpy()})
        except Exception as error:  # the errors of onnxruntime have no common base of their own
            raise KonkyoError(f"the file cannot be run on {count} images: {str(error).splitlines()[0]}") from error
        for name, value, other in zip(("logits", "maps"), values, expected, strict=True):
            _require_equal(name, torch.from_numpy(value), other[:count])


def _require_equal(name: str, values: Tensor, expected: Tensor) -> None:
    """Raises KonkyoError where numbers differ by more than rounding."""
    values, expected = values.detach().float().cpu(), expected.detach().float().cpu()
    if values.shape != expected.shape:
        raise KonkyoError(f"the file's {name} are {tuple(values.shape)}; {tuple(expected.shape)} was expected")
    off = float((values - expected).abs().amax() / expected.abs().amax().clamp_min(1e-12))
    if not off <= _TOLERANCE:
        raise KonkyoError(f"the file's {name} would differ from the model's by {off:.2g} of their largest value")
