"""neighbours(): the images of a data set that an image resembles for the model, with their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from PIL import Image
from torch import Tensor, nn

from konkyo.data.samples import Data, Sample, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.draw.overlay import overlay
from konkyo.errors import KonkyoError, unknown
from konkyo.evaluation.diagnose.collected import Collected, Pooling, Settings, collect
from konkyo.evaluation.diagnose.evidence import beside
from konkyo.evaluation.diagnose.statistics import nearest, standardised
from konkyo.evaluation.result import Table, number
from konkyo.explanation.explain import Which
from konkyo.explanation.run import Where
from konkyo.methods.base import find
from konkyo.models import Model, as_model


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest images of a data set for every query: which, how near, and what the model decides there."""

    queries: tuple[str, ...]
    """What the q queries are called."""
    names: tuple[tuple[str, ...], ...]
    """(q, k) what their neighbours are called, the nearest first."""
    indices: Tensor
    """(q, k) int64 which images of the data they are."""
    similarities: Tensor
    """(q, k) cosine."""
    labels: tuple[tuple[str, ...], ...]
    """(q, k) the true classes; "" where they are not known."""
    decisions: tuple[tuple[str, ...], ...]
    """(q, k) what the model decides of the neighbours."""
    query_decisions: tuple[str, ...]
    query_maps: Tensor
    """(q, h, w) of the decision."""
    maps: Tensor
    """(q, k, h, w) of the neighbours' labels; of the decisions, where these are not known."""
    layer: str
    standardised: bool
    _queries: Collected = field(repr=False)
    _data: Collected = field(repr=False)

    def __len__(self) -> int:
        return len(self.queries)

    def table(self) -> Table:
        """The table has a line per query and neighbour."""
        head = ["image", "decision", "rank", "neighbour", "label", "its decision", "cosine"]
        rows = []
        for q, query in enumerate(self.queries):
            for k, name in enumerate(self.names[q]):
                decision = self.query_decisions[q]
                cosine = number(float(self.similarities[q, k]))
                rows.append([query, decision, str(k + 1), name, self.labels[q][k], self.decisions[q][k], cosine])
        return head, rows

    def picture(self, query: int, rank: int) -> Image.Image:
        """Returns the neighbour of a query with its map over it; rank 0 is the nearest."""
        return overlay(self._data.thumbnail(int(self.indices[query, rank])), self.maps[query, rank].clamp_min(0))

    def sheet(self, path: str | Path | None = None, *, side: int = 160) -> Image.Image:
        """Draws a line per query, itself and its neighbours with their maps -> the picture, also written to `path`."""
        rows = []
        for q in range(len(self.queries)):
            query = overlay(self._queries.thumbnail(q), self.query_maps[q].clamp_min(0))
            others = [self.picture(q, k) for k in range(len(self.indices[q]))]
            rows.append([self._queries.thumbnail(q), query, *others])
        picture = beside(rows, side)
        if path is not None:
            from konkyo.draw.sheets import save_image  # matplotlib is loaded only for what is written

            save_image(picture, path)
        return picture


def neighbours(
    model: Model | nn.Module,
    queries: str | Path | Image.Image | Sequence[Image.Image] | Data | Samples | Scenes,
    data: str | Path | Data | Samples | Scenes,
    k: int = 5,
    layer: Where = None,
    *,
    by: Pooling = "embedding",
    standardise: bool = False,
    method: Which = "grad_cam",
    limit: int | None = None,
    batch: int = 32,
    seed: int = 0,
) -> Neighbours:
    """Returns the k images of `data` whose features are nearest to every query's, with maps of all of them.

    The features are the mean over the grid of what the explained layer puts out, compared by cosine. `by="map"` weighs
    every place by the image's map by `method`, sum_p m_p A_p / sum_p m_p of its positive part: alike is then what the
    maps point at, and not what surrounds it. An image whose map is nowhere positive is near none. `standardise`:
    every channel first minus its mean over the data, divided by its deviation, so that channels which are always strong
    do not decide alone. `queries`: pictures, a picture file, or data as `konkyo.data.samples` takes it. An image that
    is in both is its own nearest one. `limit`: so many images of the data. KonkyoError: k is not 1 or more, nothing can
    be read.
    """
    adapted = as_model(model)
    if not isinstance(k, int) or k < 1:
        raise KonkyoError(f"k is a number of neighbours, 1 or more; got {k!r}")
    if by not in get_args(Pooling):
        raise unknown("way to compare images (by=)", by, get_args(Pooling))
    settings = Settings(batch=batch, seed=seed, method=find(method), layer=layer, pooling=by)
    known = collect(adapted, samples(data, limit=limit, seed=seed), settings)
    asked = collect(adapted, _samples_of(queries), settings, train=known)
    return neighbours_of(asked, known, k, standardise=standardise)


def neighbours_of(asked: Collected, known: Collected, k: int, *, standardise: bool = False) -> Neighbours:
    """Returns the same of images that were collected already."""
    sets = asked.features, known.features
    if standardise:
        sets = standardised(asked.features, known.features), standardised(known.features, known.features)
    indices, similarities = nearest(*sets, min(k, len(known)))

    def named(values: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(values[index] for index in row) for row in indices.tolist())

    classes = known.classes
    labels = [""] * len(known) if known.labels is None else [classes[index] for index in known.labels.tolist()]
    return Neighbours(
        asked.names,
        named(known.names),
        indices,
        similarities,
        named(labels),
        named([classes[index] for index in known.predictions.tolist()]),
        tuple(classes[index] for index in asked.predictions.tolist()),
        asked.maps,
        known.maps[indices],
        known.layer,
        standardise,
        asked,
        known,
    )


def _samples_of(queries: Any) -> Samples:
    """Returns queries as samples. KonkyoError: they are none."""
    if isinstance(queries, Image.Image):
        queries = [queries]
    if isinstance(queries, (list, tuple)) and queries and all(isinstance(q, Image.Image) for q in queries):
        pictures = tuple(queries)
        names = tuple(f"image {index + 1}" for index in range(len(pictures)))
        return Samples(names, lambda index: Sample(names[index], pictures[index]))
    if isinstance(queries, (str, Path)) and Path(queries).expanduser().is_file():
        from konkyo.data.images import open_image

        file = Path(queries).expanduser()
        return Samples((file.name,), lambda _: Sample(file.name, open_image(file)))
    return samples(queries)
