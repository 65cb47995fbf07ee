"""What is said of a row in pictures and on the terminal: its score, the decision, the truth, the diagnosis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from konkyo.targets.base import BaseTarget, as_target

if TYPE_CHECKING:
    from konkyo.explanation.result import Explanation
    from konkyo.tasks.decision import Decision


def target_of(result: Explanation, row: int) -> BaseTarget | None:
    """Returns the target of a row; None for one of the user's own that was loaded from a file by its name."""
    target = result.targets[row]
    return None if isinstance(target, str) else as_target(target)


def decision_of(result: Explanation, row: int) -> Decision | None:
    """Returns what the model itself decided of a row's image; None where that is not known."""
    return result.decisions[row] if result.decisions else None


def box_of(result: Explanation, row: int) -> list[float] | None:
    """Returns a detection's box, xyxy in the picture's pixels; None for what is no detection."""
    box = None if result.boxes is None else [float(side) for side in result.boxes[row]]
    return box if box is not None and all(map(math.isfinite, box)) else None


def name_of(result: Explanation, row: int) -> str:
    """Returns the name of a row's image; "" where it has none."""
    return result.names[row] if result.names else ""


def image_name(result: Explanation, row: int) -> str:
    """Returns the name of a row's image; its number, from "image 1" on, where it has none."""
    return name_of(result, row) or f"image {int(result.image_index[row]) + 1}"


def score_in_words(result: Explanation, row: int, *, place: bool = True) -> str:
    """What a row explains, with its score: "cat (logit 3.55)", "x1 of cat (probability 0.70) at 257,231,565,477".

    What is not the model's decision is said to be asked for: "asked: dog (logit 1.20, P 0.02, rank 2)". A question to
    the model stands before its answer: "how many cats ? 2 (logit 3.55)".
    """
    score, box, target = result.scores[row].item(), box_of(result, row), target_of(result, row)
    label = result.labels[row]
    words = f"{label} (score {score:.2f})" if target is None else target.in_words(label, score)
    if request := of_the_asked(result, row):
        words = f"asked: {words}"
        words = f"{words.removesuffix(')')}, {request})" if place else words  # in a sheet it has a line of its own
    if question := result.questions[row] if result.questions else None:
        words = f"{question} {words}"
    return words + (f" at {','.join(str(round(side)) for side in box)}" if place and box is not None else "")


def of_the_asked(result: Explanation, row: int) -> str:
    """What the model says of a class that it did not decide on; the probability of a detection is said already."""
    decision = decision_of(result, row)
    if decision is None or decision.rank is None or decision.agrees:
        return ""
    return decision.of_the_asked if box_of(result, row) is None else f"rank {decision.rank}"


def decided_in_words(result: Explanation, row: int) -> str:
    """What the model decided of a row: "decided: cat (P 0.98)"; "" for a detection that is of the class it is for."""
    decision = decision_of(result, row)
    return "" if decision is None or (decision.agrees and box_of(result, row)) else decision.of_the_model


def truth_in_words(result: Explanation, row: int, *, also_right: bool = False) -> str:
    """What is true of a row's image where the model decided wrongly: "wrong, true label: dog"; else "".

    `also_right`: where it decided rightly, "true label: cat".
    """
    truth = result.true_labels[row] if result.true_labels else None
    if truth is None or not (result.correct[row] is False or also_right):
        return ""
    return f"wrong, true label: {truth}" if result.correct[row] is False else f"true label: {truth}"


def diagnosis_in_words(result: Explanation, row: int, *, message: bool = False) -> str:
    """What is wrong with a row's map, with its `message` if wanted; "" where nothing is."""
    diagnosis = result.diagnosis[row] if result.diagnosis else None
    if diagnosis is None or diagnosis.ok:
        return ""
    return f"{diagnosis.kind}: {diagnosis.message}" if message and diagnosis.message else diagnosis.kind


def lines_of(result: Explanation, row: int, *, name: bool = True) -> list[str]:
    """Returns what is said above or below a row's picture, a line each: name, score, decision, truth."""
    lines = [name_of(result, row) if name else "", score_in_words(result, row, place=False)]
    lines += [of_the_asked(result, row), decided_in_words(result, row), truth_in_words(result, row, also_right=True)]
    return [line for line in lines if line]
