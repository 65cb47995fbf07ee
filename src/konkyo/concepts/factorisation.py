"""factorise(): the concepts of a set of images, by non-negative factorisation of a layer's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from konkyo.concepts.factors import coefficients_of, nonnegative_factors
from konkyo.concepts.features import features, one_layer
from konkyo.engine.forward import Pass
from konkyo.engine.layer import Layer
from konkyo.engine.replay import Replay
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError
from konkyo.explanation.inputs import Images, Prepared, prepare
from konkyo.explanation.result import picture_of
from konkyo.explanation.run import Where
from konkyo.models import Model, as_model
from konkyo.utils.tensors import safe_divide

if TYPE_CHECKING:
    from konkyo.concepts.importance import Importance


@dataclass(frozen=True, eq=False)
class Concepts:
    """Concepts are r directions in a layer's features, and maps of where each of N images holds them.

    The features at a place are about `offset` + sum_j maps[:, j] * directions[j]. The first concept has most energy.
    """

    maps: Tensor
    """(N, r, *grid) how much of a concept is at a place: 1 is the most anywhere in the images it was found in."""
    directions: Tensor
    """(r, C) the features of a concept where its map is 1."""
    offset: Tensor
    """(C,) the least value of every channel, which was taken off first: 0 where a ReLU comes last."""
    energy: Tensor
    """(r,) the concepts' shares of the energy, |map|^2 |direction|^2."""
    error: float
    """|features - sum of concepts| / |features|, without the offset: 0 where concepts say all of them."""
    labels: tuple[str, ...]
    """(r,) what the network decides where a concept alone fills the grid; "" of networks that are no classifier."""
    names: tuple[str, ...]
    """(N,) what the images are called."""
    layer: str
    model: Model = field(repr=False)
    _layer: Layer = field(repr=False)
    _prepared: Prepared = field(repr=False)
    _settings: dict[str, int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.directions)

    def __repr__(self) -> str:
        from konkyo.concepts.display import words_of

        return words_of(self)

    def _repr_html_(self) -> str:
        from konkyo.concepts.display import html_of

        return html_of(self)

    @property
    def images(self) -> Tensor:
        """Returns the prepared images (N, C, H, W)."""
        return self._prepared.images

    def picture(self, index: int) -> Image.Image:
        """Returns what the model sees of an image."""
        pictures = self._prepared.pictures
        return picture_of(pictures[index]) if isinstance(pictures, Tensor) else pictures[index]

    def of(self, images: Images) -> Concepts:
        """Returns the same concepts in other images: maps by non-negative least squares, the directions held.

        Values above 1 are more than the images had in which the concepts were found.
        """
        prepared = prepare(self.model, images)
        values = features(self.model, prepared.images, self._layer, **self._settings)
        flat, grid = _places(values)
        shifted = flat - self.offset
        coefficients = coefficients_of(shifted, self.directions)
        return replace(
            self,
            maps=_maps(coefficients, len(values), grid),
            energy=_energy(coefficients, self.directions),
            error=_error(shifted, coefficients, self.directions),
            names=_names(prepared),
            _prepared=prepared,
        )

    def decoded(self, kept: Tensor | None = None) -> Tensor:
        """Returns the features (N, C, *grid) that the concepts stand for; `kept` (r,) weighs each (0: taken out)."""
        weights = self.maps.new_ones(len(self)) if kept is None else kept.to(self.maps)
        built = torch.einsum("nr...,rc->nc...", self.maps, self.directions * weights[:, None])
        return built + self.offset.view(1, -1, *[1] * (built.ndim - 2))

    def importance(self, target: Any = None, *, designs: int = 32, seed: int = 0) -> Importance:
        """Measures how much every concept counts for a score, as CRAFT does; see `Importance`.

        `target`: None for what the model decides of every image, or what `explain` takes, one per image: a class to ask
        what counts for it. `designs`: points of Sobol's sequence, a power of two. It costs designs * (r + 1) replays of
        what follows the layer per image.
        """
        from konkyo.concepts.importance import importance_of

        return importance_of(self, target, designs=designs, seed=seed)

    def strongest(self, concept: int, k: int = 5) -> list[int]:
        """Returns the k images that hold most of a concept, by the mean of its map."""
        means = self.maps[:, concept].flatten(1).mean(1)
        return means.argsort(descending=True, stable=True)[:k].tolist()

    def examples(
        self,
        path: str | Path | None = None,
        *,
        k: int = 5,
        importance: Importance | None = None,
        side: int = 160,
        only: Sequence[int] | None = None,
    ) -> Image.Image:
        """Draws a row per concept: the k images that hold most of it, with its maps. -> the picture, also in `path`.

        `only`: these concepts, counted from 0 (None: all), the one that counts most first.
        """
        from konkyo.concepts.display import examples_of

        return _saved(examples_of(self, k, importance, side, only), path)

    def sheet(self, path: str | Path | None = None, *, images: Sequence[int] | None = None) -> Image.Image:
        """Draws a row per image (None: the first 12) and a column per concept, all maps of a concept on one scale."""
        from konkyo.concepts.display import sheet_of

        return _saved(sheet_of(self, range(min(12, len(self.maps))) if images is None else images), path)


def factorise(
    model: Model | nn.Module,
    images: Images,
    components: int = 8,
    *,
    layer: Where = None,
    batch: int = 16,
    seed: int = 0,
) -> Concepts:
    """Finds the concepts of a set of images by non-negative factorisation of a layer's features.

    Deep feature factorisation (Collins et al., 2018): the features of all places of all images, (places, channels),
    minus every channel's least value, ~ coefficients @ directions, both non-negative, of rank `components`. A direction
    is a concept, its coefficients are its maps. CRAFT (Fel et al., 2023) adds what each counts for a class
    (`Concepts.importance`); this is its holistic form, of all places of whole images, where theirs takes pooled crops.
    `images`: as `explain` takes them; those of one class show the parts of that class. `layer`: None for the automatic
    one. `seed` is of networks that draw; the factorisation draws nothing. Costs a forward per image and the
    factorisation. KonkyoError: several layers, a pyramid, fewer places or channels than components.
    """
    adapted = as_model(model)
    prepared = prepare(adapted, images, read_off=isinstance(model, nn.Module))
    where = one_layer(adapted, layer, tuple(prepared.images.shape[1:]))
    settings = {"batch": batch, "seed": seed}
    values = features(adapted, prepared.images, where, **settings)
    flat, grid = _places(values)
    offset = flat.amin(0)
    shifted = flat - offset
    if not bool(shifted.any()):
        raise KonkyoError(f"the features of {where.name} are the same at every place of every image; try another layer")
    coefficients, directions = nonnegative_factors(shifted, components)
    most = coefficients.amax(0)
    coefficients, directions = safe_divide(coefficients, most), directions * most[:, None]
    order = _energy(coefficients, directions).argsort(descending=True, stable=True)
    coefficients, directions = coefficients[:, order], directions[order]
    return Concepts(
        maps=_maps(coefficients, len(values), grid),
        directions=directions,
        offset=offset,
        energy=_energy(coefficients, directions),
        error=_error(shifted, coefficients, directions),
        labels=_labels(adapted, prepared.images[:1], where, directions + offset, seed),
        names=_names(prepared),
        layer=where.name,
        model=adapted,
        _layer=where,
        _prepared=prepared,
        _settings=settings,
    )


def _places(values: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Returns features (N, C, *grid) as (N * places, C), and the grid."""
    return values.flatten(2).mT.reshape(-1, values.shape[1]), tuple(values.shape[2:])


def _maps(coefficients: Tensor, count: int, grid: tuple[int, ...]) -> Tensor:
    """Returns coefficients (N * places, r) as maps (N, r, *grid)."""
    return coefficients.view(count, -1, coefficients.shape[1]).mT.reshape(count, -1, *grid)


def _energy(coefficients: Tensor, directions: Tensor) -> Tensor:
    energy = coefficients.square().sum(0) * directions.square().sum(1)
    return safe_divide(energy, energy.sum())


def _error(shifted: Tensor, coefficients: Tensor, directions: Tensor) -> float:
    parts = zip(torch.split(shifted, 1 << 14), torch.split(coefficients, 1 << 14), strict=True)
    missed = sum(float((values - part @ directions).double().square().sum()) for values, part in parts)
    total = float(shifted.double().square().sum())
    return float((missed / total) ** 0.5) if total else 0.0


def _names(prepared: Prepared) -> tuple[str, ...]:
    known = prepared.names or ("",) * len(prepared.images)
    return tuple(name or f"image {index + 1}" for index, name in enumerate(known))


def _labels(model: Model, image: Tensor, layer: Layer, columns: Tensor, seed: int) -> tuple[str, ...]:
    """Returns the class that the network gives the highest logit where features (r, C) fill the whole grid."""
    session = untouched(model.module, seed)
    with session, session, torch.no_grad():
        made = Pass(model, image, [layer])
        if made.output.ndim != 2:
            return ("",) * len(columns)
        shape = made.activations(layer).shape
        replay = Replay(made.forward, replace(layer, call=layer.call % made.calls[layer]), model.module, made.images)
        filled = columns.view(*columns.shape, *[1] * (len(shape) - 2)).expand(-1, -1, *shape[2:])
        output = torch.cat([replay(part.contiguous()) for part in torch.split(filled, 16)])
        try:
            targets = model.targets(None, output)
        except KonkyoError:  # an embedding decides on nothing
            return ("",) * len(columns)
    return tuple(model.label(target[0], output.shape[1]) if target else "" for target in targets)


def _saved(picture: Image.Image, path: str | Path | None) -> Image.Image:
    if path is not None:
        from konkyo.draw.sheets import save_image  # matplotlib is loaded only for what is written

        save_image(picture, path)
    return picture
