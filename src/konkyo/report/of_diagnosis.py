"""The page of a diagnosis: its findings, every image with its maps and what it resembles, and a card per class."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from PIL import Image
from torch import Tensor

from konkyo.evaluation.diagnose.findings import Text
from konkyo.evaluation.diagnose.result import DiagnosedImage, DiagnosisReport
from konkyo.report.assets import picture_side, reduced
from konkyo.report.builders import Request, builder
from konkyo.report.data import DataPictures, provenance_of, some_of
from konkyo.report.page import ClassCard, HeatMap, ImageRow, Neighbour, Page, Shortlist, words
from konkyo.report.truth import cards_of, confusion_of

WITH_NEIGHBOURS = 60
"""So many images show the pictures of what they resemble: the wrong ones first."""
_SMALL = 112
_OF_CLASS = words("Of {name}", "{name} のマップ")
_OF_NONE = words("Of no class", "クラスによらないマップ")


@builder(DiagnosisReport)
def page_of_diagnosis(result: DiagnosisReport, request: Request) -> Page:
    """Returns the page of a diagnosis. Pictures come from the data, which is opened again where it is not at hand."""
    settings = result.settings
    source = DataPictures(settings, request)
    listed = {name for entry in result.lists for name in entry.images}
    flagged = listed | {image.name for image in result.images if image.flags}
    pictures = _at_hand(result, request.most, flagged) or source.of([image.name for image in result.images], flagged)
    trained, notes = dict[str, Image.Image](), source.notes if result.thumbnail is None else ()
    if settings.get("train"):
        training = DataPictures({**settings, "data": settings["train"]}, replace(request, most=None))
        wanted = [name for image in _first(result.images) for name, _ in image.neighbours]
        trained = {name: reduced(picture, _SMALL) for name, picture in training.of(wanted).items()}
        notes = (*notes, *training.notes)
    rows = _rows(result, pictures, trained)
    places = {row.name: place for place, row in enumerate(rows)}
    confusion = confusion_of(rows)
    return Page(
        title=request.title or f"{settings.get('model', 'model')}: diagnosis",
        findings=result.findings,
        not_asked=result.not_asked,
        shortlists=tuple(
            Shortlist(e.title, _marked(e.note, used_labels=e.used_labels), tuple(places[name] for name in e.images))
            for e in result.lists
            if e.images
        ),
        rows=rows,
        classes=_cards(result, cards_of(confusion, rows)),
        confusion=confusion,
        provenance={**provenance_of(settings, request), **result.provenance},
        command=request.command or result.command,
        notes=(*(words(line) for line in result.remarks()), *notes),
    )


def _at_hand(result: DiagnosisReport, most: int | None, first: Collection[str]) -> dict[str, Image.Image]:
    """Returns the pictures of a diagnosis that has just been made, which knows them; {} of one that was loaded."""
    if result.thumbnail is None:
        return {}
    places = {image.name: index for index, image in enumerate(result.images)}
    names = some_of(list(places), most, first)
    side = picture_side(len(names))
    return {name: reduced(result.thumbnail(places[name]), side) for name in names}


def _first(images: tuple[DiagnosedImage, ...]) -> list[DiagnosedImage]:
    """Returns the images whose neighbours are shown: the wrong ones first, then the most suspicious."""
    order = sorted(images, key=lambda image: (image.correct is not False, -_known(image.suspicion)))
    return order[:WITH_NEIGHBOURS]


def _known(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _marked(note: Text, *, used_labels: bool) -> Text:
    """Returns the note of a list with the words on whether it used the labels."""
    mark = words("used labels", "ラベル使用") if used_labels else words("used no labels", "ラベル不使用")
    return {lang: f"{text} [{mark[lang]}]" for lang, text in note.items()}


def _rows(
    result: DiagnosisReport, pictures: Mapping[str, Image.Image], trained: Mapping[str, Image.Image]
) -> tuple[ImageRow, ...]:
    method, tensors = str(result.settings.get("method", "map")), result.tensors
    of_wrong = {int(index): place for place, index in enumerate(tensors["wrong"])} if "wrong" in tensors else {}
    shown = {image.name for image in _first(result.images)}
    rows = []
    for index, image in enumerate(result.images):
        target = image.label or image.decision
        kinds = (("maps", method, _filled(_OF_CLASS, {"name": target})), ("eigen", "eigen_cam", _OF_NONE))
        maps = [HeatMap(by, tensors[kind][index], caption=caption) for kind, by, caption in kinds if kind in tensors]
        place = of_wrong.get(index)
        rows.append(
            ImageRow(
                image.name,
                pictures.get(image.name),
                maps=tuple(map(_checked, maps)),
                decision=image.decision,
                probability=image.probability,
                true_label=image.label,
                true_probability=image.label_probability,
                asked=target,
                asked_probability=image.label_probability if image.label else image.probability,
                flags=image.flags,
                suspicion=image.suspicion,
                why=image.why,
                top=image.top,
                contrasts=() if place is None else _contrasts(image, method, tensors, index, place),
                neighbours=_neighbours(image, trained) if image.name in shown else (),
                values={name: value for name, value in image.values.items() if not math.isnan(value)},
            )
        )
    return tuple(rows)


def _checked(map_: HeatMap) -> HeatMap:
    """Returns the map, marked where it shows nothing."""
    if float(map_.values.max()) > float(map_.values.min()):
        return map_
    return replace(map_, diagnosis="blank", message="The map shows nothing: it has one value everywhere.")


def _contrasts(
    image: DiagnosedImage, method: str, tensors: Mapping[str, Tensor], index: int, place: int
) -> tuple[HeatMap, ...]:
    """Returns the map of the decision, and what speaks for the decision and against the label."""
    both = {"decision": image.decision, "label": image.label}
    decided = words("Of the decision, {decision}", "判断された {decision} のマップ")
    against = words("Red speaks for {decision}, blue for {label}", "赤は {decision} を、青は {label} を支持する部分")
    values = tensors["contrasts"][place]
    most = max(float(values.abs().max()), 1e-12)
    return (
        HeatMap(method, tensors["decision_maps"][index], caption=_filled(decided, both)),
        HeatMap("grad_cam", values, limits=(-most, most), caption=_filled(against, both)),
    )


def _filled(text: Text, values: Mapping[str, str]) -> Text:
    return {lang: template.format(**values) for lang, template in text.items()}


def _neighbours(image: DiagnosedImage, trained: Mapping[str, Image.Image]) -> tuple[Neighbour, ...]:
    return tuple(Neighbour(trained.get(name), name, label) for name, label in image.neighbours)


def _cards(result: DiagnosisReport, cards: tuple[ClassCard, ...]) -> tuple[ClassCard, ...]:
    """Returns the cards with how alike the maps of a class are, and with the alarm that belongs beside that number."""
    alike = {} if result.consistency is None else {c.name: c for c in result.consistency.of_class if c.used}
    alarms = {c.name: c.alarm for c in result.classes}
    made = []
    for card in cards:
        known = alike.get(card.name)
        if known is not None:
            card = replace(card, consistency=known.value, low=known.low, high=known.high)
        made.append(replace(card, alarm=alarms.get(card.name, {})))
    return tuple(made)
