"""Pairs: what makes two images alike to a network of embeddings, in both of them and place by place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from konkyo.engine.forward import Pass
from konkyo.engine.layer import Layer
from konkyo.engine.replay import Replay
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.explanation.explain import Which, explain
from konkyo.explanation.inputs import Image_, outputs_of, prepare
from konkyo.explanation.result import Explanation
from konkyo.models import Model, as_model
from konkyo.targets.similarity import Kind, Similarity, embeddings_of

if TYPE_CHECKING:
    from PIL import Image

LINEAR = 1e-3
"""So much of an embedding's length may be missing in the sum of what its places add."""
_CHUNK = 64  # places at a time
_LAST = 8  # layers that are tried where none is named


@dataclass(frozen=True)
class Link:
    """A link is a place of one image and a place of the other, with what the two add to the cosine together."""

    a: tuple[float, float]
    """x, y of the cell's centre, in pixels of the picture."""
    b: tuple[float, float]
    value: float


@dataclass(frozen=True, eq=False)
class Pair:
    """What makes two images alike: a map of each, with the other as the reference, and what every two places add."""

    a: Explanation
    """The evidence in the first image, one row; the second is fixed."""
    b: Explanation
    """The evidence in the second image, one row; the first is fixed."""
    cosine: float
    matrix: Tensor | None = None
    """(ha, wa, hb, wb), what place (y, x) of a and (v, u) of b add to the cosine together. None: see `refusal`."""
    refusal: str = ""
    """Why there is no matrix; "" where there is one."""
    matrix_layer: str = ""
    missing: float = 0.0
    """How much of the embeddings' length the sum over places leaves out, as a share; 0 at a linear layer."""

    def require_matrix(self) -> Tensor:
        """Returns the matrix. NotApplicable: there is none, and why."""
        if self.matrix is None:
            raise NotApplicable(self.refusal)
        return self.matrix

    def counterpart(self, x: float, y: float) -> Tensor:
        """Returns the map (hb, wb) of the second image for the place x, y of the first, in pixels of its picture.

        Its values say what every place of the second image adds to the cosine together with that place. KonkyoError: a
        place outside of the picture. NotApplicable: no matrix.
        """
        matrix = self.require_matrix()
        row, column = _cell(self.a, x, y, (matrix.shape[0], matrix.shape[1]))
        return matrix[row, column]

    def links(self, count: int = 10) -> list[Link]:
        """Returns the pairs of places that add most, highest first, at most so many. NotApplicable: no matrix.

        Every place is in one of them only, so that the links spread over both images. Pairs that lower the cosine are
        left out.
        """
        matrix = self.require_matrix()
        tall, wide, rows, columns = matrix.shape
        left = matrix.detach().cpu().double().reshape(tall * wide, rows * columns).clone()
        links: list[Link] = []
        while len(links) < min(count, *left.shape):
            value, at = left.flatten().max(0)
            if not float(value) > 0:
                break
            i, j = divmod(int(at), left.shape[1])
            links.append(Link(_centre(self.a, i, (tall, wide)), _centre(self.b, j, (rows, columns)), float(value)))
            left[i], left[:, j] = -torch.inf, -torch.inf
        return links

    def picture(self, path: str | Path | None = None, *, links: int = 0) -> Image.Image:
        """Returns both images beside each other with their maps, and so many links between them; also to a file."""
        from konkyo.draw.pairs import beside  # pictures are drawn only when a user wants them

        lines = [(link.a, link.b, link.value) for link in self.links(links)] if links else []
        return _saved(beside(self._shown(self.a), self._shown(self.b), lines), path)

    def counterpart_picture(self, x: float, y: float, path: str | Path | None = None) -> Image.Image:
        """Returns the first image with a place marked, and the second with its map for that place; also to a file."""
        from konkyo.draw.overlay import overlay
        from konkyo.draw.pairs import beside, marked

        map_ = replace(self.b, signed=self.counterpart(x, y)[None], rectified=False)
        share = float(self.counterpart(x, y).sum())
        picture = self.b.picture(0)
        lit = overlay(
            picture, map_.at((picture.height, picture.width))[0] if map_.regions is not None else map_.maps[0]
        )
        return _saved(
            beside(
                (marked(self.a.picture(0), (x, y)), [self._name(self.a, "a"), "the place"]),
                (lit, [self._name(self.b, "b"), f"adds {share:.3f} of cosine {self.cosine:.2f}"]),
            ),
            path,
        )

    def _shown(self, side: Explanation) -> tuple[Image.Image, list[str]]:
        from konkyo.explanation.words import score_in_words

        name = self._name(side, "a" if side is self.a else "b")
        return side.overlay(0, brightness="full"), [name, score_in_words(side, 0)]

    @staticmethod
    def _name(side: Explanation, otherwise: str) -> str:
        return side.names[0] if side.names and side.names[0] else otherwise

    def __repr__(self) -> str:
        matrix = f"matrix at {self.matrix_layer}" if self.matrix is not None else f"no matrix: {self.refusal}"
        return f"Pair: cosine {self.cosine:.3f}, {self.a.method} at {self.a.layer} of {self.a.model}; {matrix}"


def pair(
    model: Model | nn.Module,
    a: Image_,
    b: Image_,
    *,
    method: Which = "hires_cam",
    kind: Kind = "dot",
    layer: str | nn.Module | Layer | None = None,
    seed: int = 0,
    **options: Any,
) -> Pair:
    """Returns what makes two images alike to a network of embeddings.

    `method` explains the similarity in each image with the other one fixed, at `layer`; `kind` as of `Similarity`.
    `options` are the method's. The matrix (Stylianou et al., 2019) needs a layer from which the embedding is linear, as
    it is where only pooling and a linear layer follow the last convolution: f = f(0) + sum_i u_i, u_i what place i of
    the layer adds. Then cos(f, g) = sum_ij M_ij, M_ij = u_i . v_j / (|f| |g|), where each place has an equal share of
    the constant f(0). It is made at `layer`, or at the last one where that holds; where it holds nowhere, as of class
    tokens, `Pair.refusal` says so. Cost: an explanation of each image, and a forward of what follows the layer for each
    of its places. KonkyoError: no embeddings, or not one image on each side.
    """
    adapted = as_model(model)
    embeddings = [embeddings_of(outputs_of(adapted, image, seed=seed)) for image in (a, b)]
    if any(len(one) != 1 for one in embeddings):
        raise KonkyoError(f"a pair is one image and another; got {len(embeddings[0])} and {len(embeddings[1])}")
    sides = [
        explain(adapted, image, target=target, method=method, layer=layer, seed=seed, **options)
        for image, target in (
            (a, Similarity(b, kind, name=_called(adapted, b, "b"))),
            (b, Similarity(a, kind, name=_called(adapted, a, "a"))),
        )
    ]
    cosine = float(torch.cosine_similarity(embeddings[0].double(), embeddings[1].double())[0])
    try:
        matrix, name, missing = _matrix(adapted, a, b, layer, seed)
    except NotApplicable as reason:
        return Pair(sides[0], sides[1], cosine, refusal=str(reason))
    return Pair(sides[0], sides[1], cosine, matrix, "", name, missing)


def _called(model: Model, image: Any, otherwise: str) -> str:
    """Returns the name of an image: its file's, or another."""
    names = prepare(model, image).names
    return names[0] if names and names[0] else otherwise


def _matrix(
    model: Model, a: Image_, b: Image_, layer: str | nn.Module | Layer | None, seed: int
) -> tuple[Tensor, str, float]:
    """Returns the matrix, the layer that it is made at, and what is missing there. NotApplicable: no linear layer."""
    images = [prepare(model, image).images for image in (a, b)]
    least, tried = float("inf"), ""
    for candidate in _candidates(model, layer, tuple(images[0].shape[1:])):
        with _session(model, seed):
            sides = [_additions(model, image, candidate) for image in images]
        missing = max(side.missing for side in sides)
        if missing <= LINEAR:
            (u, f), (v, g) = ((side.added, side.embedding) for side in sides)
            values = u @ v.T / (torch.linalg.vector_norm(f) * torch.linalg.vector_norm(g))
            return values.view(*sides[0].grid, *sides[1].grid).float(), candidate.name, missing
        if missing < least:
            least, tried = missing, candidate.name
    raise NotApplicable(
        f"the embedding of {model.name} is linear from no layer that all of it passes: {least:.0%} of it is not in the "
        f"sum of what the places of {tried!r} add, which is the nearest. A class token is like that, which gathers by "
        "attention; layer= names another layer, and konkyo.Model(module, select=...) may take the mean of the tokens"
    )


def _candidates(model: Model, layer: str | nn.Module | Layer | None, shape: tuple[int, ...]) -> Iterator[Layer]:
    """Yields the layers that are tried: the one that is named, or the automatic one and the last ones."""
    if layer is not None:
        yield model.layer(layer, shape)
        return
    automatic = model.automatic_layers(shape)
    known = list(automatic) if len(automatic) == 1 else []
    grids = [site.layer for site in reversed(model.sites(shape)) if site.used and site.layer is not None]
    for candidate in dict.fromkeys([*known, *grids[:_LAST]]):
        yield model.layer(candidate.name, shape) if candidate.module is None else candidate


@contextmanager
def _session(model: Model, seed: int) -> Iterator[None]:
    session = untouched(model.module, seed)
    with session, session, torch.no_grad():
        yield


@dataclass(frozen=True, eq=False)
class _Additions:
    """What the places of a layer add to an embedding."""

    added: Tensor
    """(places, D) float64; the constant part of the embedding is shared by all places."""
    embedding: Tensor
    """(D,) float64"""
    grid: tuple[int, ...]
    drift: Tensor
    """(D,) how far the constant part is from that of a blank image: it is 0 where all of the image passes the layer."""

    @property
    def missing(self) -> float:
        """Returns how far the sum, or its constant, is from what it should be, as a share of the embedding's length."""
        length = torch.linalg.vector_norm(self.embedding)
        apart = torch.stack([self.embedding - self.added.sum(0), self.drift])
        return float(torch.linalg.vector_norm(apart, dim=1).amax() / length)


def _additions(model: Model, image: Tensor, layer: Layer) -> _Additions:
    """Returns what every place of a layer adds to the embedding of one image (1, C, H, W)."""
    pass_ = Pass(model, image, [layer])
    activations = pass_.activations(layer)
    grid = tuple(activations.shape[2:])
    once = replace(layer, call=layer.call % pass_.calls[layer])
    replay = Replay(pass_.forward, once, model.module, image)
    whole = embeddings_of(pass_.output)[0].double()
    constant, blank = (
        embeddings_of(run(torch.zeros_like(activations)))[0].double()
        for run in (replay, Replay(pass_.forward, once, model.module, torch.zeros_like(image)))
    )
    masks = torch.eye(activations[0, 0].numel(), device=activations.device, dtype=activations.dtype)
    parts = [
        embeddings_of(replay(chunk.view(len(chunk), 1, *grid) * activations)).double() - constant
        for chunk in torch.split(masks, _CHUNK)
    ]
    added = torch.cat(parts)
    return _Additions(added + constant / len(added), whole, grid, constant - blank)


def _cell(side: Explanation, x: float, y: float, grid: Sequence[int]) -> tuple[int, int]:
    """Returns the (row, column) of a grid where a place of the picture lies. KonkyoError: it lies outside."""
    picture = side.picture(0)
    if not (0 <= x < picture.width and 0 <= y < picture.height):
        raise KonkyoError(f"a place lies in the picture, {picture.width} x {picture.height} pixels; got {x:g},{y:g}")
    left, top, right, bottom = _region(side)
    across = left + (right - left) * x / picture.width
    down = top + (bottom - top) * y / picture.height
    return min(int(down * grid[0]), grid[0] - 1), min(int(across * grid[1]), grid[1] - 1)


def _centre(side: Explanation, place: int, grid: Sequence[int]) -> tuple[float, float]:
    """Returns the centre of a cell of a grid, x and y in pixels of the picture, on it where the cell is border."""
    picture = side.picture(0)
    left, top, right, bottom = _region(side)
    row, column = divmod(place, grid[1])
    across = ((column + 0.5) / grid[1] - left) / (right - left)
    down = ((row + 0.5) / grid[0] - top) / (bottom - top)
    return min(max(across, 0.0), 1.0) * picture.width, min(max(down, 0.0), 1.0) * picture.height


def _region(side: Explanation) -> tuple[float, float, float, float]:
    if side.regions is None:
        return (0.0, 0.0, 1.0, 1.0)
    left, top, right, bottom = (float(edge) for edge in side.regions[0])
    return (left, top, right, bottom)


def _saved(picture: Image.Image, path: str | Path | None) -> Image.Image:
    from konkyo.draw.sheets import save_image

    if path is not None:
        save_image(picture, Path(path))
    return picture
