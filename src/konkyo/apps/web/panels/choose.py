"""Choose: the model, the picture, and what of it is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from konkyo.apps.web.page import Page, box_of, event_data, number_of
from konkyo.apps.web.pictures import chips, stage, thumbnails
from konkyo.apps.web.session import MOST_BYTES, Session
from konkyo.apps.web.words import word
from konkyo.errors import KonkyoError
from konkyo.tasks.segmentation import SegmentationTask


def picture_view(session: Session) -> str:
    """Returns the picture with what the model decided on, to click on."""
    seen = session.seen()
    description = word(session.lang, "picture.of", name=session.name) if seen else word(session.lang, "picture.none")
    drag = seen is not None and isinstance(session.model.task, SegmentationTask)
    return stage(seen, session.choices, session.chosen, description=description, drag=drag)


def choices_view(session: Session) -> str:
    """Returns the list of what the model decided, as buttons."""
    chosen = session.choices.index(session.chosen) if session.chosen in session.choices else None
    return chips([choice.words for choice in session.choices], chosen)


def chosen_view(session: Session) -> str:
    """Returns what is explained, in words."""
    if session.chosen is None:
        key = "ask.first" if session.picture is not None and _noun(session) else "nothing"
        return word(session.lang, key)
    return word(session.lang, "explained", label=_plain(session.chosen.label))


def samples_view(session: Session) -> str:
    """Returns the samples as small pictures to choose."""
    if not session.model_name:
        return ""
    data = session.shelf.samples(session.model_name)
    entries = [(sample.image, sample.name) for sample in data]
    chosen = next((number for number, sample in enumerate(data) if sample.name == session.name), None)
    return thumbnails(entries, chosen)


def text_view(session: Session) -> Any:
    """Returns the field for the text that a model reads beside the picture; hidden of models that read none."""
    noun = _noun(session)
    return gr.update(visible=bool(noun), value=session.text, label=word(session.lang, f"text.{noun or 'question'}"))


def _noun(session: Session) -> str:
    prompts = session.shelf.model(session.model_name).prompts if session.model_name else None
    return "" if prompts is None else prompts.noun


def _plain(text: str) -> str:
    """Returns a text without what Markdown would read in it."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>()#+-.!|~$&" else character for character in text)


def choose_panel(page: Page) -> None:
    """Builds the panel, and says what its events do."""
    offer = list(page.shelf.offer)
    model = page.named(
        gr.Dropdown(offer, value=offer[0], allow_custom_value=page.shelf.public, elem_id="model"),
        label="model",
        info="model.public" if page.shelf.public else "model.info",
    )
    page.shown(model, lambda session: session.model_name)
    upload = page.named(
        gr.File(file_types=["image", ".dcm", ".tif", ".tiff"], type="filepath", height=140, elem_id="upload"),
        label="upload",
    )
    page.shown(upload, lambda _: None)
    with page.named(gr.Accordion(open=True), label="samples"):
        samples = page.drawing(samples_view, lambda s: (s.model_name, s.name), elem_id="samples")
    text = page.shown(
        gr.Textbox(visible=False, max_length=300, elem_id="text"), text_view, lambda s: (s.model_name, s.text)
    )
    page.shown(gr.Markdown(elem_id="chosen"), chosen_view)
    picture = page.drawing(picture_view, lambda s: (s.model_name, s.picture, s.choices, s.chosen), elem_id="picture")
    choices = page.drawing(choices_view, lambda s: (s.choices, s.chosen), elem_id="choices")
    with gr.Row():
        label = page.named(gr.Textbox(max_length=100, elem_id="class"), label="class", info="class.info")
        against = page.named(gr.Textbox(max_length=100, elem_id="against"), label="against", info="against.info")
    page.on(model.input, lambda session, name: session.choose_model(name), [model])
    page.on(upload.upload, take_file, [upload])
    page.on(samples.select, at_sample)
    page.on(text.submit, lambda session, value: session.ask(value), [text])
    page.on(picture.select, at_picture)
    page.on(choices.select, at_choice)
    page.on(label.submit, lambda session, name: session.choose_class(name), [label])
    page.on(against.submit, lambda session, name: session.set_against(name), [against])


def take_file(session: Session, path: Any) -> None:
    """Takes the picture that was uploaded; the file goes at once. KonkyoError: no picture, or too large a one."""
    if not isinstance(path, str):
        return
    file = Path(path)
    try:
        if file.stat().st_size > MOST_BYTES:
            raise KonkyoError(word(session.lang, "error.large", most=MOST_BYTES >> 20))
        contents = file.read_bytes()
    except OSError as error:
        raise KonkyoError(f"the file is not there any more: {error.strerror}") from error
    finally:
        file.unlink(missing_ok=True)
    session.take_file(file.name, contents)


def at_sample(session: Session, event: gr.EventData) -> None:
    """Takes the sample that was clicked on."""
    session.take_sample(int(number_of(event_data(event).get("choice"))))


def at_choice(session: Session, event: gr.EventData) -> None:
    """Takes the decision that was clicked on."""
    session.choose_number(int(number_of(event_data(event).get("choice"))))


def at_picture(session: Session, event: gr.EventData) -> None:
    """Takes what lies where the picture was clicked on, or the rectangle that was drawn."""
    data = event_data(event)
    if "choice" in data:
        session.choose_number(int(number_of(data["choice"])))
    elif "box" in data:
        session.choose_box(box_of(data["box"]))
    else:
        session.choose_point(number_of(data.get("x")), number_of(data.get("y")))
