"""Images and texts in one space: a classifier whose classes are texts, or an embedding that any text is asked of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from konkyo.data.frame import Frame
from konkyo.errors import KonkyoError
from konkyo.targets.base import Target
from konkyo.targets.classes import ClassTarget, ContrastTarget, Magnitude, Score, TopK, combination
from konkyo.targets.texts import Text, TextOfSeveral, TextSimilarity
from konkyo.tasks.base import Classes, TargetRequest, Task, task
from konkyo.tasks.classification import ClassificationTask
from konkyo.tasks.decision import Decision


@task
@dataclass(frozen=True)
class ZeroShotTask(ClassificationTask):
    """The classes are texts, and the output (N, texts) their logits: scale * cosine + bias.

    With `multilabel` (SigLIP) each text has a probability of its own, a sigmoid; else (CLIP) it is a softmax over the
    texts. Of one text the similarity is explained.
    """

    noun: ClassVar[str] = "zero-shot classifier"

    scale: float = 1.0
    bias: float = 0.0

    def decides(self, output: Tensor, classes: Classes) -> bool:
        """Tells whether the output is of texts (N, K)."""
        return output.ndim == 2 and bool(classes.names)

    def holds_probabilities(self, output: Tensor, again: Callable[[], Tensor]) -> bool:
        """Returns False: the output is logits by its making."""
        del output, again
        return False

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image; `request` may also be a `Text`. KonkyoError: a text that it has not."""
        if len(classes.names) == 1 and (request is None or isinstance(request, TopK)):
            if isinstance(request, TopK) and request.k > 1:
                raise KonkyoError(f"TopK({request.k}) of a model with 1 text")
            request = 0
        if request is None or isinstance(request, TopK):
            return super().targets(request, output, classes, score=score, frames=frames)
        return [[self._target(request, score, output, classes)]] * len(output)

    def _target(self, target: Any, score: Score, output: Tensor, classes: Classes) -> Target:
        if isinstance(target, Text):
            index, quantity = self._index(target.text, classes), target.score
        elif len(classes.names) == 1 and isinstance(target, (str, int)) and not isinstance(target, bool):
            index, quantity = self._index(target, classes), None
            if score == "probability" and self.multilabel:  # what the method explains where the user says nothing
                quantity = "probability"
        elif len(classes.names) == 1 and isinstance(target, ClassTarget):
            words = {"logit": "logit", "probability": "probability", "sigmoid": "probability", "similarity": None}
            index, quantity = self._index(target.index, classes), words[target.score]  # type: ignore[assignment]
        elif isinstance(target, str):
            return self._class_target(self._index(target, classes), score)
        else:
            return super()._target(target, score, output, classes)
        if quantity == "similarity" or len(classes.names) == 1:
            return self._of_one(index, quantity, classes)
        return self._class_target(index, quantity or score)

    def _of_one(self, index: int, score: str | None, classes: Classes) -> Target:
        """Returns a text's similarity, or the logit or probability of the only one."""
        if score == "probability" and not self.multilabel:
            raise KonkyoError(
                f"the probability of {classes.model} is a softmax over its texts, and of one text it is 1 whatever the "
                "image shows. Give the texts that it is to be told from, or explain the similarity"
            )
        kind = {"probability": "sigmoid", "logit": "logit"}.get(score or "", "similarity")
        return TextOfSeveral(index, self.scale, self.bias, kind)  # type: ignore[arg-type]

    def _index(self, text: str | int, classes: Classes) -> int:
        """Returns which of the texts is meant. KonkyoError: none of them."""
        if isinstance(text, str):
            try:
                return classes.index(text)
            except KonkyoError as error:
                raise KonkyoError(
                    f"{error}. Another text than those that the model was given: load it with that text, or without "
                    "texts, when a target may be any text"
                ) from None
        if not 0 <= text < len(classes.names):
            raise KonkyoError(f"text {text} of a model with {len(classes.names)} texts")
        return text

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns the text of a target."""
        if isinstance(target, TextOfSeveral):
            return classes.label(target.index)
        return super().label(target, classes, outputs)

    def decisions_beside(
        self, targets: Sequence[Target], images: Sequence[int], output: Tensor, classes: Classes
    ) -> list[Decision | None]:
        """Returns the text with the highest score, of every target's image; None where there is only one text."""
        if len(classes.names) == 1:
            return [None] * len(targets)
        return super().decisions_beside(targets, images, output, classes)

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns the text's number, its score, and how the logit is made; None for another target."""
        return asdict(target) if isinstance(target, TextOfSeveral) else None  # a class is saved as one

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the target of a text; None for values that are of something else."""
        return TextOfSeveral(**values) if values.keys() == {"index", "scale", "bias", "score"} else None


@task
@dataclass(frozen=True)
class ImageTextTask(Task):
    """The output is the embedding of an image (N, C), which any text may be asked of.

    `embed(texts)` gives the embeddings of texts (T, C), of length 1. `scale`, `bias` and `multilabel` are as in
    `ZeroShotTask`.
    """

    noun: ClassVar[str] = "image-text model"

    embed: Callable[[Sequence[str]], Tensor]
    scale: float = 1.0
    bias: float = 0.0
    multilabel: bool = False

    def decides(self, output: Tensor, classes: Classes) -> bool:
        """Returns False: without a text nothing is decided."""
        del output, classes
        return False

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image. `request`: a text, a `Text`, or a target.

        KonkyoError: none, or the probability of one text among others that are not there.
        """
        del score, frames
        return [[self._target(request, classes)]] * len(output)

    def _target(self, request: Any, classes: Classes) -> Target:
        # A contrast is a difference of logits, as of classes; a bias is in neither.
        if (combined := combination(request, lambda part: self._target(part, classes))) is not None:
            return combined
        if isinstance(request, (str, Text)):
            return self._of_text(request if isinstance(request, Text) else Text(request), classes)
        if request is None or isinstance(request, (int, TopK, ClassTarget)) or not callable(request):
            raise KonkyoError(
                f'{classes.model} puts out embeddings of images, and was given no texts: give target="a photo of a '
                f'cat", or load it with texts=["a cat", "a dog"], which makes it a classifier; got {request!r}'
            )
        target: Target = request
        return target

    def _of_text(self, text: Text, classes: Classes) -> Target:
        (vector,) = self.embed([text.text])
        if text.score in (None, "similarity"):
            return TextSimilarity(text.text, vector)
        if text.score == "probability" and not self.multilabel:
            raise KonkyoError(
                f"the probability of {classes.model} is a softmax over several texts, and of one text it is 1 whatever "
                'the image shows. Load it with texts=[...], or explain the "similarity"'
            )
        return TextSimilarity(text.text, vector, self.scale, self.bias, text.score == "probability")

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns the text of a target."""
        if isinstance(target, Magnitude):
            return "the whole embedding"
        return target.text if isinstance(target, TextSimilarity) else super().label(target, classes, outputs)

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns the text, its embedding and its score; None for another target."""
        if not isinstance(target, TextSimilarity):
            return None
        numbers = {"scale": target.scale, "bias": target.bias, "sigmoid": target.sigmoid}
        return {"text": target.text, "vector": target.vector.tolist(), **numbers}

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the target of a text; None for values that are of something else."""
        if values.keys() != {"text", "vector", "scale", "bias", "sigmoid"}:
            return None
        return TextSimilarity(**{**values, "vector": torch.tensor(values["vector"])})

    def request(self, options: TargetRequest, model: str) -> Any:
        """Returns the texts that the options ask for. KonkyoError: none, or an option without a use here."""
        options.refuse(model, self.noun, "top", "threshold", "boxes", "quantity")
        if not options.classes:
            return None
        if options.against is not None:
            return ContrastTarget(str(options.classes[0]), str(options.against))
        return str(options.classes[0])
