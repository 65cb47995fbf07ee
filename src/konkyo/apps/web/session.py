"""Session: what one user of the page has chosen, and the maps that were made of it. It knows no page."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from konkyo.apps.web.choices import Box, Choice, at_point, choices_of, code_of, contrast, in_box, of_class, picture_seen
from konkyo.apps.web.shelf import Shelf, asks, known_method
from konkyo.apps.web.words import word
from konkyo.data import scans
from konkyo.data.images import open_image
from konkyo.errors import KonkyoError, NotApplicable, silenced
from konkyo.evaluation.neighbours import Neighbours
from konkyo.evaluation.perturbation import Covering, PixelCurve
from konkyo.explanation.explain import explanations
from konkyo.explanation.result import Explanation
from konkyo.models import Model

MOST_METHODS = 12
"""So many methods are explained by at once, and so many maps are kept."""
MOST_PIXELS = 16_000_000
"""Larger pictures are refused before their pixels are read."""
MOST_BYTES = 20 * 2**20
"""Larger files are refused while they are sent."""
LONGEST_QUESTION = 300
Tell = Callable[[str, int, int | None], None]
"""(method, how much is done, of how much) is told while maps are made."""


class Stopped(Exception):  # noqa: N818 - it is no error: somebody asked for it
    """A computation that was stopped by its user; the network is as it was before."""


@dataclass(eq=False)
class Run:
    """A run is one computation of a user's; it ends early where it is stopped."""

    stopped: threading.Event = field(default_factory=threading.Event)
    ran: bool = False
    """Whether anything was computed in it."""
    active: bool = False
    """Whether it is under way."""

    def check(self) -> None:
        """Raises Stopped where somebody asked for the end."""
        if self.stopped.is_set():
            raise Stopped


@dataclass(eq=False, repr=False)
class Session:
    """One user's choices and results. Nothing of it is shared with other users."""

    shelf: Shelf
    lang: str = "en"
    model_name: str = ""
    text: str = ""
    """The question, or the classes as texts apart by ";", of a model that reads one."""
    picture: Image.Image | None = None
    name: str = ""
    """What the picture is called: its file's name, or a sample's."""
    source: str = ""
    """The Python that opens the picture."""
    choices: tuple[Choice, ...] = ()
    chosen: Choice | None = None
    results: dict[str, Explanation] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Why a method has no map."""
    pair: tuple[str, str] = ("", "")
    """The names of the two maps that are compared."""
    region: Box | None = None
    """What was covered, as shares of the sides of what the model sees."""
    covering: Covering | None = None
    curves: dict[str, tuple[PixelCurve, ...]] = field(default_factory=dict)
    neighbours: Neighbours | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    """What was made for download last."""
    methods: tuple[str, ...] = ()
    """The methods that are chosen; none: the usual one."""
    sent: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    """Of every drawing, what it was made of when it was sent to the browser last."""
    run: Run = field(default_factory=Run)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # --- what is chosen -----------------------------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """Returns the model, bound to its text where it reads one. KonkyoError: none is chosen, or no text is given."""
        model = self.shelf.model(self.model_name)
        if model.prompts is None:
            return model
        if asks(model):
            return model.prompted(question=self.text or None)
        return model.prompted(texts=self._texts or None)

    @property
    def _texts(self) -> list[str]:
        """Returns the classes that are given as texts."""
        return [text.strip() for text in self.text.split(";") if text.strip()]

    def choose_model(self, name: str) -> None:
        """Takes another model; the picture stays. KonkyoError: one that is not on offer."""
        self.stop()
        self.shelf.model(name)
        before, self.model_name = self.model_name, name
        if before != name:
            self.text, self.methods = "", ()
            if self.source.startswith("konkyo."):  # a sample; another model has others
                self.picture = None
        if self.picture is None:
            self.take_sample(0)
        else:
            self._look()

    def take_sample(self, index: int) -> None:
        """Takes one of the samples. KonkyoError: there is no such one."""
        self.stop()
        data = self.shelf.samples(self.model_name)
        if not 0 <= index < len(data):
            raise KonkyoError(f"a sample from 0 to {len(data) - 1} was expected; got {index}")
        sample, source = data[index], self.shelf.source(self.shelf.model(self.model_name))
        self.picture, self.name = sample.image, sample.name
        self.source = f"konkyo.data.samples.samples({source!r}, limit={len(data)})[{index}].image"
        if sample.question:
            self.text = sample.question
        self._look()

    def take_file(self, name: str, contents: bytes) -> None:
        """Takes the picture in a file. KonkyoError: too large, too many pixels, a scan, or no picture."""
        if len(contents) > MOST_BYTES:
            raise KonkyoError(f"{name[:80]!r} has more than {MOST_BYTES >> 20} MB; make it smaller")
        if scans.reader(Path(name), io.BytesIO(contents)) is not None:
            raise KonkyoError(word(self.lang, "error.scan", name=name[:80]))
        _check_pixels(name, contents)
        picture = open_image(contents)
        self.stop()
        self.picture, self.name, self.source = picture, name[:120], repr(name[:120])
        self._look()

    def ask(self, text: str) -> None:
        """Takes the question, or the classes as texts. KonkyoError: a text that the model cannot read."""
        self.stop()
        self.text = str(text)[:LONGEST_QUESTION].strip()
        self._look()

    def _look(self) -> None:
        """Runs the model on the picture, and lists what can be explained."""
        self._forget()
        self.choices, self.chosen, self.neighbours, self.region = (), None, None, None
        if self.picture is not None:
            model = self.model
            if model.prompts is not None and model.prompts.value is None:  # it waits for its text
                return
            self.choices = choices_of(model, self.picture)
            self.chosen = self.choices[0] if self.choices else None

    def _forget(self) -> None:
        """Forgets what was made of something else."""
        self.results, self.refused, self.curves, self.files = {}, {}, {}, {}
        self.covering = None

    def seen(self) -> Image.Image | None:
        """Returns the picture as the model sees it; None: there is none."""
        return None if self.picture is None else picture_seen(self.model, self.picture)

    # --- what is explained --------------------------------------------------------------------------------------------

    def choose(self, choice: Choice | None) -> None:
        """Takes what is explained; maps of something else go. None leaves all as it is."""
        if choice is None or choice == self.chosen:
            return
        with self._lock:
            self.stop()
            self._forget()
            self.chosen = choice

    def choose_number(self, index: int) -> None:
        """Takes one of what the model decided. KonkyoError: there is no such one."""
        if not 0 <= index < len(self.choices):
            raise KonkyoError(f"one of {len(self.choices)} decisions was expected; got {index}")
        self.choose(self.choices[index])

    def choose_point(self, x: float, y: float) -> None:
        """Takes what lies at a point of the picture as the model sees it; nothing changes where nothing does."""
        if self.picture is not None and math.isfinite(x) and math.isfinite(y):
            self.choose(at_point(self.model, self.picture, self.choices, x, y))

    def choose_box(self, box: tuple[float, float, float, float]) -> None:
        """Takes a region of the picture as the model sees it, of a segmenter."""
        if self.picture is not None and all(map(math.isfinite, box)):
            self.choose(in_box(self.model, self.picture, box))

    def choose_class(self, name: str) -> None:
        """Takes any class by its name or index. KonkyoError: an unknown class."""
        self.choose(of_class(self.model, name))

    def set_against(self, name: str) -> None:
        """Asks why what is chosen, and not the class `name`. KonkyoError: an unknown class."""
        if self.chosen is None:
            raise KonkyoError("first choose what is explained")
        self.choose(contrast(self.model, self.chosen, name))

    # --- maps ---------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stops what is being computed for this user, at the next chunk or method."""
        self.run.stopped.set()

    def start(self) -> Run:
        """Stops what is being computed, and returns the run that comes in its place."""
        self.stop()
        self.run = Run()
        return self.run

    @contextmanager
    def running(self) -> Iterator[Run]:
        """Yields a run of its own for what is computed within; Stopped leaves all as it was."""
        run = self.start()
        run.ran = run.active = True
        try:
            yield run
        finally:
            run.active = False

    def request(self) -> tuple[Image.Image, Choice]:
        """Returns the picture, and what of it is explained. KonkyoError: one of both is not chosen."""
        if self.picture is None or self.chosen is None:
            raise KonkyoError("choose a picture, and what of it is explained, first")
        return self.picture, self.chosen

    def any_result(self, run: Run) -> tuple[Explanation, Model, Image.Image]:
        """Returns a map of what is chosen, with the model and the picture; the first there is, else the usual one.

        KonkyoError: nothing is chosen, or it has no map.
        """
        model, (picture, chosen) = self.model, self.request()
        result = next(iter(self.results.values()), None)
        made = result or explained(model, picture, chosen.request, model.task.method, run)
        if not isinstance(made, Explanation):
            raise KonkyoError(made)
        return made, model, picture

    def explain(self, names: Sequence[str], tell: Tell | None = None) -> Iterator[str]:
        """Yields the name of every method when its map is there, in `results` or with its reason in `refused`.

        Stopped: the run was stopped, or something else was chosen meanwhile; what was there by then stays.
        KonkyoError: no picture, nothing chosen, or an unknown method.
        """
        model, (picture, chosen) = self.model, self.request()
        wanted = list(dict.fromkeys(known_method(name, model) for name in names))
        if not wanted or len(wanted) > MOST_METHODS:
            raise KonkyoError(f"1 to {MOST_METHODS} methods are explained by at once; got {len(wanted)}")
        with self.running() as run:
            self.results = {name: result for name, result in self.results.items() if name in wanted}
            self.refused, self.files = {}, {}
            for name in (name for name in wanted if name not in self.results):
                outcome = explained(model, picture, chosen.request, name, run, tell)
                with self._lock:  # what is chosen does not change between the check and the note
                    run.check()
                    if isinstance(outcome, Explanation):
                        self.results[name] = outcome
                    else:
                        self.refused[name] = outcome
                yield name

    def code(self) -> str:
        """Returns the Python that makes the same maps. KonkyoError: nothing is chosen."""
        _, chosen = self.request()
        model = self.shelf.model(self.model_name)
        loaded, question = f"konkyo.load({self.model_name!r})", ""
        if model.prompts is not None and self.text:
            if asks(model):
                question = f", question={self.text!r}"
            else:
                loaded = f"konkyo.load({self.model_name!r}, texts={self._texts!r})"
        names = list(self.results) or [model.task.method]
        return (
            "import konkyo\n\n"
            f"model = {loaded}\n"
            f"image = {self.source}\n"
            f"target = {code_of(chosen.request)}\n"
            f"results = konkyo.compare(model, image, {names!r}, target=target{question})\n"
            'results[next(iter(results))].overlay(0).save("why.png")\n'
        )


def explained(
    model: Model, picture: Image.Image, request: Any, name: str, run: Run, tell: Tell | None = None
) -> Explanation | str:
    """Returns the map of one method, or why there is none. Stopped: the run was; KonkyoError: the model fails."""
    run.check()

    def progress(done: int, total: int | None) -> None:
        run.check()
        if tell is not None:
            tell(name, done, total)

    with silenced():  # diagnoses stand beside the maps
        result = explanations(model, picture, [name], target=request, progress=progress)[name]
    run.check()
    if isinstance(result, NotApplicable):
        return str(result)
    if not len(result):
        return next(iter(result.absences.values()), model.task.nothing(request))
    return result


def _check_pixels(name: str, contents: bytes) -> None:
    """Raises KonkyoError for a picture whose header names too many pixels; what is no picture passes."""
    try:
        with Image.open(io.BytesIO(contents)) as picture:
            width, height = picture.size
    except Image.DecompressionBombError:
        width, height = MOST_PIXELS, 2
    except Exception:  # `open_image` says what is wrong with it
        return
    if width * height > MOST_PIXELS:
        raise KonkyoError(
            f"{name[:80]!r} has more than {MOST_PIXELS / 1e6:g} million pixels; shrink it or cut out a part"
        )
