"""diagnose(): from a model and data to findings."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch
from torch import Tensor, nn

import konkyo.evaluation.diagnose as questions_package
from konkyo.data.samples import Data, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.errors import KonkyoError, NotApplicable, silenced, unknown
from konkyo.evaluation.batches import require_no_question
from konkyo.evaluation.consistency import Consistency, measure
from konkyo.evaluation.diagnose.backbone import nearest_training
from konkyo.evaluation.diagnose.collected import ORDER, QUESTIONS, Collected, CueRule, Question, Settings, collect
from konkyo.evaluation.diagnose.findings import SEVERITIES, Finding, Text, worded
from konkyo.evaluation.diagnose.result import DiagnosedClass, DiagnosedImage, DiagnosisReport, ImageList
from konkyo.evaluation.diagnose.suspicious import DOUBTFUL, decision_maps, rankings
from konkyo.evaluation.diagnose.wrong import NEIGHBOURS, class_mean_maps, mistakes, why
from konkyo.explanation.explain import Which
from konkyo.explanation.run import Where
from konkyo.methods.base import find
from konkyo.models import Model, as_model
from konkyo.tasks import ClassificationTask
from konkyo.utils.progress import Progress
from konkyo.utils.words import counted
from konkyo.version import __version__

UNSURE = 0.5
"""A decision less probable than this is unsure."""
_TOP = 5
_REASONS = {
    "labels": worded("no labels", "ラベルがありません"),
    "train": worded("no training images with labels (train=, --train)", "ラベル付きの学習画像がありません（--train）"),
    "masks": worded("no masks", "マスクがありません"),
}


def diagnose(
    model: Model | nn.Module,
    data: str | Path | Data | Scenes | Samples,
    train: str | Path | Data | Scenes | Samples | None = None,
    ask: str | Sequence[str] = "all",
    alpha: float = 0.01,
    *,
    classes: Sequence[str] = (),
    cue_rule: Mapping[str, float] = {},
    method: Which = "grad_cam",
    layer: Where = None,
    limit: int | None = None,
    batch: int = 32,
    resamples: int = 1000,
    budget: int = 48,
    seed: int = 0,
    progress: Progress | None = None,
    announce: Callable[[str], object] | None = None,
) -> DiagnosisReport:
    """The report says what a classifier rests on, why it is wrong, and which images to look at: a sentence each.

    `data`: held-out images as `konkyo.data.samples` takes them ("folder:DIR", ...); `train`: those that the model was
    trained on, which several questions need. `ask`: "all", or names of questions (`questions`). `alpha`: the error
    rate of a question over all its subjects. `classes`: those that questions about single classes are asked of; all.
    `cue_rule`: thresholds of the question "cue" that are to differ: "high", "medium", "cover", "paste" (`CueRule`).
    `method`, `layer`: how maps are made, as in `explain`. `limit`: so many images, chosen by the seed. `resamples`: of
    permutations and intervals; 1 / alpha or more. `budget`: images that a class's interventions are tried on.
    `progress(done, total)` is called while images are explained, `announce` with a sentence before what takes long.

    A finding needs a p-value of at most `alpha` and a size above its threshold (but of "cue", where "medium" may have a
    larger p, and says so). Questions that the data does not allow are listed in `not_asked`. The same arguments give
    the same findings. The model comes back as it was. KonkyoError: a detector, an unknown question or class, an output
    that is not finite, or no image that can be read.
    """
    adapted = as_model(model)
    chosen = _chosen(ask)
    names = (classes,) if isinstance(classes, str) else tuple(classes)
    settings = Settings(alpha, resamples, budget, batch, seed, find(method), layer, names, CueRule.of(cue_rule))
    _check(adapted, settings, limit)
    held_out = samples(data, limit=limit, seed=seed)
    known = None if train is None else samples(train, seed=seed)
    for data_set in (held_out, known):
        for name in dict.fromkeys(data_set.labels) if data_set is not None and adapted.classes else ():
            adapted.class_index(name)  # before minutes are spent on images whose class the model does not have
    tell = announce or (lambda _: None)
    count = len(held_out) + (0 if known is None else len(known))
    tell(f"{count} images are explained: {3 * count} forwards")
    trained = None if known is None else collect(adapted, known, settings, progress=progress)
    collected = collect(adapted, held_out, settings, train=trained, progress=progress)
    possible, not_asked = _possible(chosen, collected)
    tell(f"{counted(len(possible), 'question')}: about {sum(q.forwards(collected) for q in possible)} forwards more")
    findings = list[Finding]()
    for question in possible:
        try:
            findings += question.ask(collected)
        except NotApplicable as reason:
            not_asked[question.name] = worded("{reason}", "{reason}", reason=reason)
    return report_of(collected, findings, not_asked)


def questions() -> dict[str, Question]:
    """Returns all questions by name, in the order in which they are asked; any module of this folder may have some."""
    for module in iter_modules(questions_package.__path__):
        import_module(f"{questions_package.__name__}.{module.name}")
    return dict(sorted(QUESTIONS.items(), key=lambda item: (item[1].order, item[0])))


def _chosen(ask: str | Sequence[str]) -> list[Question]:
    every = questions()
    if not isinstance(ask, (str, Sequence)) or not all(isinstance(name, str) for name in ask):
        raise KonkyoError(f'ask names questions, as in "cue,head" or ["cue", "head"], or is "all"; got {ask!r}')
    wanted = ask.split(",") if isinstance(ask, str) else ask
    names = [name.strip() for name in wanted if name.strip()]
    if names == ["all"]:
        return list(every.values())
    for name in names:
        if name not in every:
            raise unknown("question", name, [*every, "all"])
    if not names:
        raise KonkyoError(f"ask names no question; there are {', '.join(every)}")
    return [question for name, question in every.items() if name in names]


def _check(model: Model, settings: Settings, limit: int | None) -> None:
    """Raises KonkyoError where the arguments cannot be right."""
    if not isinstance(model.task, ClassificationTask):
        raise KonkyoError(f"{model.name} is a {model.task.noun}; a classifier is diagnosed")
    require_no_question(model)
    if not isinstance(settings.alpha, (int, float)) or not 0 < settings.alpha < 1:
        raise KonkyoError(f"alpha lies between 0 and 1; got {settings.alpha!r}")
    numbers = {"batch": settings.batch, "resamples": settings.resamples, "budget": settings.budget, "limit": limit or 1}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise KonkyoError(f"{name} is a whole number, 1 at least; got {value!r}")
    if (least := math.ceil(1 / settings.alpha) - 1) > settings.resamples:
        raise KonkyoError(
            f"with {settings.resamples} resamples no p-value reaches alpha = {settings.alpha:g}, so nothing could be "
            f"named: at least {least} resamples are needed"
        )
    for name in settings.classes:
        model.class_index(name)


def _possible(chosen: Iterable[Question], collected: Collected) -> tuple[list[Question], dict[str, Text]]:
    """Returns the questions that the data allows, and why it does not allow the others."""
    possible, not_asked = list[Question](), dict[str, Text]()
    for question in chosen:
        if need := question.missing(collected):
            not_asked[question.name] = _REASONS[need]
        else:
            possible.append(question)
    return possible, not_asked


# --- the report -------------------------------------------------------------------------------------------------------


def report_of(collected: Collected, findings: Iterable[Finding], not_asked: dict[str, Text]) -> DiagnosisReport:
    """Returns the report: findings sorted, a line per image and class, consistency of the labels' maps."""
    ordered = sorted(findings, key=_rank)
    return DiagnosisReport(
        tuple(ordered),
        _images(collected, ordered),
        _classes(collected, ordered) if collected.labels is not None else (),
        _consistency(collected) if collected.labels is not None else None,
        _settings(collected),
        _provenance(collected),
        not_asked,
        tuple(
            ImageList(r.subject, r.title, r.note, tuple(collected.names[i] for i in r.indices), r.used_labels)
            for r in rankings(collected)
        ),
        _tensors(collected),
        (*collected.notes, *(collected.train.notes if collected.train is not None else ())),
        thumbnail=collected.thumbnail,
    )


def _rank(finding: Finding) -> tuple[int, int]:
    """Returns what findings are sorted by: severity, then the order of the questions; the sort is stable."""
    order = ORDER.index(finding.question) if finding.question in ORDER else len(ORDER)
    return SEVERITIES.index(finding.severity), order


def _images(collected: Collected, findings: Sequence[Finding]) -> tuple[DiagnosedImage, ...]:
    lists = {ranking.subject: ranking for ranking in rankings(collected)}
    suspicion = lists["probably wrong"].scores
    labels = None if collected.labels is None else collected.labels.tolist()
    cues = {f.subject for f in findings if f.question == "cue" and f.severity in ("high", "medium")}
    copies = {name for f in findings if f.question == "duplicates" for name in f.images}
    wrong = mistakes(collected) if labels is not None else None
    place_of = {} if wrong is None else {index: place for place, index in enumerate(wrong.indices)}
    near = _neighbours(collected)
    best = collected.probabilities.topk(min(_TOP, len(collected.classes)))
    rows = []
    for index, name in enumerate(collected.names):
        top = zip(best.indices[index].tolist(), best.values[index].tolist(), strict=True)
        decision = collected.classes[int(collected.predictions[index])]
        confidence = float(collected.confidence[index])
        row = DiagnosedImage(
            name,
            decision,
            confidence,
            suspicion=float(suspicion[index]),
            top=tuple((collected.classes[k], value) for k, value in top),
            neighbours=near[index] if near else (),
        )
        flags = ["unsure"] if confidence < UNSURE else []
        if labels is not None and wrong is not None:
            label, of_label = collected.classes[labels[index]], float(collected.label_probability[index])
            row = replace(row, label=label, label_probability=of_label)
            flags += ["cue"] if label in cues else []
            if (place := place_of.get(index)) is not None:
                flags = ["wrong", *flags, *(["label?"] if of_label < DOUBTFUL else [])]
                values = {
                    "neighbours of the decision": float(wrong.of_decision[place]),
                    "neighbours of the label": float(wrong.of_label[place]),
                    "map distance to the decision's class": float(wrong.to_decision[place]),
                    "map distance to the label's class": float(wrong.to_label[place]),
                }
                row = replace(row, why=why(collected, wrong, place), values=values)
        flags += ["duplicate"] if name in copies else []
        rows.append(replace(row, flags=tuple(flags)))
    return tuple(rows)


def _neighbours(collected: Collected) -> list[tuple[tuple[str, str], ...]]:
    """Returns (name, label) of the five nearest training images of every image; [] where they are not known."""
    train = collected.train
    if train is None or train.labels is None:
        return []
    labels = [train.classes[index] for index in train.labels.tolist()]
    near = nearest_training(collected, train)[:, :NEIGHBOURS]
    return [tuple((train.names[k], labels[k]) for k in row) for row in near.tolist()]


def _classes(collected: Collected, findings: Sequence[Finding]) -> tuple[DiagnosedClass, ...]:
    labels, decisions, kinds = collected.true_labels, collected.predictions, collected.probabilities.shape[1]
    counts: Tensor = torch.bincount(labels * kinds + decisions, minlength=kinds * kinds).view(kinds, kinds)
    mixed = counts + counts.T
    alarms = {f.subject: f.sentence for f in findings if f.question == "cue" and f.severity in ("high", "medium")}
    rows = []
    for index in collected.present:
        name, n, given = collected.classes[index], int(counts[index].sum()), int(counts[:, index].sum())
        right = int(counts[index, index])
        others = [(int(mixed[index, k]), -k) for k in range(kinds) if k != index and mixed[index, k]]
        confused = tuple((collected.classes[-k], count) for count, k in sorted(others, reverse=True)[:3])
        precision = right / given if given else float("nan")
        rows.append(DiagnosedClass(name, n, right / n, precision, confused, alarms.get(name, {})))
    return tuple(rows)


def _consistency(collected: Collected) -> Consistency | None:
    """Returns how alike the maps of every class are; None where no class has two maps."""
    labels = collected.true_labels
    usable = collected.correct & (collected.unit_maps.flatten(1).amax(1) > 0)
    if not bool((torch.bincount(labels[usable]) >= 2).any()) or min(collected.grid) < 2:
        return None
    settings = collected.settings
    with silenced():
        return measure(
            collected.maps,
            labels,
            collected.predictions,
            classes=collected.classes,
            names=collected.names,
            resamples=settings.resamples,
            permutations=min(200, settings.resamples),
            seed=settings.seed,
            settings={"model": collected.model.name, "data": collected.data.source or "samples"},
        )


def _tensors(collected: Collected) -> dict[str, Tensor]:
    tensors = {"maps": collected.maps, "eigen": collected.eigen, "mean_maps": class_mean_maps(collected)}
    tensors["decision_maps"] = decision_maps(collected)
    if collected.labels is not None:
        wrong = mistakes(collected)
        tensors |= {"contrasts": wrong.contrasts, "wrong": torch.tensor(wrong.indices, dtype=torch.int64)}
    return tensors


def _settings(collected: Collected) -> dict[str, Any]:
    settings, train = collected.settings, collected.train
    return {
        "model": collected.model.name,
        "data": collected.data.source or "samples",
        "images": len(collected),
        "train": None if train is None else train.data.source or "samples",
        "training images": 0 if train is None else len(train),
        "classes": list(collected.classes),
        "preprocess": repr(collected.model.preprocess),
        "method": find(settings.method).name,
        "layer": collected.layer,
        "alpha": settings.alpha,
        "resamples": settings.resamples,
        "budget": settings.budget,
        "seed": settings.seed,
        "asked of": list(settings.classes),
        "cue rule": asdict(settings.cue),
    }


def _provenance(collected: Collected) -> dict[str, str]:
    settings = _settings(collected)
    names = ("model", "data", "images", "train", "training images", "method", "layer", "alpha", "resamples", "seed")
    values = {name: str(settings[name]) for name in names if settings[name] is not None}
    return values | {"konkyo": __version__, "torch": torch.__version__, "Python": platform.python_version()}
