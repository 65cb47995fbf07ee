"""Embeddings: an output is a vector (N, D) that says by its direction what an image is like, and decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from konkyo.data.frame import Frame
from konkyo.data.samples import Sample
from konkyo.errors import KonkyoError
from konkyo.targets.base import Target
from konkyo.targets.classes import ContrastTarget, Score, TopK, combination
from konkyo.targets.numbers import Output
from konkyo.targets.similarity import Similarity
from konkyo.tasks.base import Classes, Explained, Matching, TargetRequest, Task, task


@task
@dataclass(frozen=True)
class EmbeddingTask(Task):
    """The embedding (N, D) of an image, explained by its likeness to a reference: `konkyo.Similarity(reference)`.

    `prototypes` (K, D) are embeddings with names, those of `Model.classes`: people of a gallery, or the rows of the
    weight of an ArcFace or CosFace head, whose margin and scale are for training only. With them the network decides on
    the prototype of the largest cosine, and a name is a target.
    """

    noun: ClassVar[str] = "network of embeddings"

    prototypes: Tensor | None = field(default=None, compare=False)

    def confidences(self, output: Tensor) -> Tensor:
        """Returns the cosines with all prototypes (N, K); the embedding itself where there are none."""
        if self.prototypes is None:
            return output
        if output.ndim != 2 or output.shape[1] != self.prototypes.shape[1]:
            raise KonkyoError(
                f"prototypes have {self.prototypes.shape[1]} numbers each; the output has shape {tuple(output.shape)}"
            )
        return normalize(output, dim=1) @ normalize(self.prototypes.detach().to(output), dim=1).T

    def decides(self, output: Tensor, classes: Classes) -> bool:
        """Tells whether there are prototypes to decide between."""
        del output, classes
        return self.prototypes is not None

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image: `request` is a Target, or a prototype's name or index, or None, `TopK`.

        Without prototypes an index is that of a number of the embedding. KonkyoError: no target, where there are no
        prototypes to decide between, or a name that none of them has.
        """
        del score, frames
        if request is None or isinstance(request, TopK):
            if self.prototypes is None:
                raise _lacks_reference(classes)
            count = 1 if request is None else min(request.k, len(self.prototypes))
            ranked = self.confidences(output).topk(count, dim=1).indices.tolist()
            return [[self._prototype(index, classes) for index in row] for row in ranked]
        return [[self._target(request, classes)]] * len(output)

    def _target(self, request: Any, classes: Classes) -> Target:
        if (combined := combination(request, lambda part: self._target(part, classes))) is not None:
            return combined
        if callable(request):
            target: Target = request
            return target
        if isinstance(request, bool) or not isinstance(request, (int, str)):
            raise _lacks_reference(classes, request)
        if self.prototypes is None:
            if isinstance(request, str):
                raise _lacks_reference(classes, request)
            return Output(request, f"number {request} of the embedding")
        return self._prototype(classes.index(request) if isinstance(request, str) else request, classes)

    def _prototype(self, index: int, classes: Classes) -> Similarity:
        assert self.prototypes is not None
        if not 0 <= index < len(self.prototypes):
            raise KonkyoError(f"prototype {index} of {len(self.prototypes)} (0 to {len(self.prototypes) - 1})")
        return Similarity(self.prototypes[index].float(), name=classes.label(index))

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns what the image is likened to: the reference's name."""
        if isinstance(target, Similarity):
            return f"like {target.name or 'the reference'}"
        if isinstance(target, Output):
            return target.name or f"number {target.index} of the embedding"
        return super().label(target, classes, outputs)

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns a similarity with the embedding of its reference; None for other targets."""
        if not isinstance(target, Similarity):
            return None
        values = asdict(target)
        return {"similarity": values.pop("kind"), **values, "reference": list(target.embedding)}

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the similarity; None for values that are of something else."""
        if "similarity" not in values:
            return None
        others = {name: value for name, value in values.items() if name != "similarity"}
        return Similarity(kind=values["similarity"], **others)

    def request(self, options: TargetRequest, model: str) -> Any:
        """Returns the prototypes that the options name, or the nearest ones. KonkyoError: there are none."""
        options.refuse(model, self.noun, "threshold", "boxes", "quantity", whose="detectors")
        if self.prototypes is None and options.names("classes", "top", "against"):
            raise _lacks_reference(Classes(model))
        if not options.classes:
            return None if options.top is None else TopK(options.top)
        if len(options.classes) > 1 or options.top is not None:
            raise KonkyoError("--class names the one prototype that images are likened to")
        (this,) = options.classes
        return this if options.against is None else ContrastTarget(this, options.against)

    def measured(self, sample: Sample, explained: Explained, matching: Matching) -> Any:
        """Returns the request for what is measured of a sample: the nearest prototype, or that of its own label."""
        if self.prototypes is None:
            raise _lacks_reference(Classes("the network"))
        return super().measured(sample, explained, matching)

    def perturbation_score(self, target: Target, box: Tensor) -> Target:
        """Returns the cosine itself in the place of the dot product: what networks of embeddings are compared by."""
        del box
        return replace(target, kind="cosine") if isinstance(target, Similarity) and target.kind == "dot" else target


def _lacks_reference(classes: Classes, request: Any = None) -> KonkyoError:
    """Returns that an embedding decides nothing by itself, and what explains it."""
    words = "" if request is None else f", so {request!r} names nothing of it"
    return KonkyoError(
        f"{classes.model} puts out embeddings, not classes{words}. Say what the image is likened to, "
        "target=konkyo.Similarity(picture, path or embedding), on the command line --reference FILE; methods that know "
        "no target (eigen_cam, kpca_cam, fem) need none. If they are classes after all, classes=[...] says so"
    )
