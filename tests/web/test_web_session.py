"""A user's session without a browser: what is chosen, what is computed, what is refused."""

from __future__ import annotations

import io
import re
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import konkyo
from konkyo.apps.web.choices import Choice, at_point, code_of
from konkyo.apps.web.session import MOST_BYTES, Session, Stopped
from konkyo.apps.web.shelf import Shelf, groups_of_methods
from konkyo.errors import KonkyoError, silenced

CLASSIFIER, DETECTOR, SEGMENTER = "konkyo/scenes-classifier", "konkyo/scenes-detr", "konkyo/scenes-segmenter"


def png(width: int = 40, height: int = 30, colour: str = "teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def made_by(code: str) -> dict[str, Any]:
    """Runs the Python that the page shows."""
    names: dict[str, Any] = {}
    with silenced():
        exec(compile(code.replace('.save("why.png")', ""), "code", "exec"), names)
    return names


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_a_sample_is_decided_on_and_its_map_is_that_of_explain(session: Session) -> None:
    assert [choice.probability for choice in session.choices] == sorted(
        (choice.probability for choice in session.choices), reverse=True
    )
    assert list(session.explain(["grad_cam", "eigen_cam"])) == ["grad_cam", "eigen_cam"]
    expected = konkyo.explain(konkyo.load(CLASSIFIER), session.picture, method="grad_cam")
    assert session.chosen is not None
    assert expected.labels[0] == session.chosen.label
    torch.testing.assert_close(session.results["grad_cam"].maps, expected.maps)


def test_a_choice_takes_the_maps_of_another_one_away(session: Session) -> None:
    list(session.explain(["grad_cam"]))
    session.choose_number(1)
    assert session.results == {}
    list(session.explain(["grad_cam"]))
    assert session.results["grad_cam"].labels == (session.choices[1].label,)
    session.choose_class("cat")
    list(session.explain(["grad_cam"]))
    assert session.results["grad_cam"].labels == ("cat",)


def test_why_not_another_class_is_a_contrast(session: Session) -> None:
    session.choose_class("cat")
    session.set_against("rabbit")
    list(session.explain(["grad_cam"]))
    assert session.results["grad_cam"].labels == ("cat, not rabbit",)
    with pytest.raises(KonkyoError, match="cannot be set against"):
        session.set_against("taxi")
    session.choose_class("cat")
    with pytest.raises(KonkyoError, match="is the class itself"):
        session.set_against("cat")


@pytest.mark.parametrize(
    "wish",
    [
        lambda s: s.choose_model("konkyo/none"),
        lambda s: s.choose_model("torchvision/resnet18"),
        lambda s: s.choose_model("../secrets.py:build"),
        lambda s: s.choose_model(["a", "list"]),
        lambda s: s.take_sample(99),
        lambda s: s.take_sample(-1),
        lambda s: s.choose_number(7),
        lambda s: s.choose_class("unicorn"),
        lambda s: s.choose_class("99"),
        lambda s: list(s.explain(["grad_camera"])),
        lambda s: list(s.explain([])),
        lambda s: list(s.explain([{"name": "grad_cam"}])),
        lambda s: list(s.explain(["augmented(grad_cam)"])),
    ],
)
def test_what_is_not_on_offer_is_refused_and_changes_nothing(session: Session, wish: Any) -> None:
    before = (session.model_name, session.picture, session.chosen)
    with pytest.raises(KonkyoError):
        wish(session)
    assert (session.model_name, session.picture, session.chosen) == before


def test_public_ids_are_ids_and_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    shelf = Shelf(public=True)
    for name in (
        "hf/folder",
        "hf/../folder",
        "hf//etc/passwd",
        "trained/folder",
        "file.py:build",
        "hf/.hidden",
        "x.onnx",
    ):
        with pytest.raises(KonkyoError, match="unknown model"):
            shelf.model(name)


def test_a_file_named_at_the_start_is_offered(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(
        "import torch, konkyo\nfrom torch import nn\n"
        "def build():\n    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))\n"
        "    net = nn.Sequential(net, nn.Flatten(), nn.Linear(4, 2))\n"
        "    return konkyo.Model(net, konkyo.Preprocess(32, 32), ('<b>cat</b>', 'dog'), 'small')\n"
    )
    session = Session(Shelf((f"{file}:build",), data="scenes:1,objects=1"))
    session.choose_model(f"{file}:build")
    assert {choice.label for choice in session.choices} == {"<b>cat</b>", "dog"}


def test_methods_are_those_for_the_network(shelf: Shelf) -> None:
    groups = groups_of_methods(shelf.model(CLASSIFIER))
    names = {name for group in groups.values() for name in group}
    assert groups["usual"][0] == "grad_cam"
    assert {"rise", "lime", "integrated_gradients"} <= names
    assert not names & {"attention_rollout", "d_rise", "detr_attention", "mm_explainability"}


# --- detections and pixels --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detected(shelf: Shelf) -> Session:
    pytest.importorskip("transformers")
    session = Session(shelf)
    session.choose_model(DETECTOR)
    for index in range(4):
        session.take_sample(index)
        if session.choices:
            break
    return session


def test_the_smallest_box_around_a_point_is_meant() -> None:
    model = konkyo.load(CLASSIFIER)
    large, small = Choice("large", None, box=(0, 0, 50, 50)), Choice("small", None, box=(10, 10, 20, 20))
    picture = Image.new("RGB", (64, 64))
    assert at_point(model, picture, [large, small], 15, 15) is small
    assert at_point(model, picture, [large, small], 30, 30) is large
    assert at_point(model, picture, [large, small], 60, 60) is None


def test_a_detection_is_explained_where_its_box_is(detected: Session) -> None:
    choice = detected.choices[-1]
    assert choice.box is not None
    x0, y0, x1, y1 = choice.box
    detected.choose_number(0)
    detected.choose_point((x0 + x1) / 2, (y0 + y1) / 2)
    assert detected.chosen is not None
    detected.choose(choice)
    list(detected.explain(["odam"]))
    boxes = detected.results["odam"].boxes
    assert boxes is not None
    torch.testing.assert_close(boxes[0], torch.tensor(choice.box), rtol=0, atol=0.2)


def test_the_code_of_a_detection_makes_the_same_map(detected: Session) -> None:
    detected.choose_number(0)
    list(detected.explain(["odam"]))
    again = made_by(detected.code())["results"]["odam"]
    torch.testing.assert_close(again.maps, detected.results["odam"].maps)


def test_pixels_and_regions_of_a_segmenter(shelf: Shelf) -> None:
    session = Session(shelf)
    session.choose_model(SEGMENTER)
    session.choose_point(40.0, 60.0)
    assert session.chosen is not None
    assert session.chosen.request == konkyo.Pixel(40.0, 60.0)
    list(session.explain(["layer_cam"]))
    torch.testing.assert_close(made_by(session.code())["results"]["layer_cam"].maps, session.results["layer_cam"].maps)
    session.choose_box((20.0, 30.0, 60.0, 90.0))
    list(session.explain(["layer_cam"]))
    assert "20,30,60,90" in session.chosen.label
    assert len(session.results["layer_cam"]) == 1


def test_a_question_is_asked_and_its_answers_are_listed() -> None:
    session = Session(Shelf())
    session.choose_model("konkyo/scenes-vqa")
    assert session.text
    session.ask("is there a cat?")
    assert {"yes", "no"} & {choice.label for choice in session.choices[:2]}
    list(session.explain(["grad_cam"]))
    torch.testing.assert_close(made_by(session.code())["results"]["grad_cam"].maps, session.results["grad_cam"].maps)
    with pytest.raises(KonkyoError, match="no question about drawn scenes"):
        session.ask("who are you?")


def test_classes_as_texts() -> None:
    session = Session(Shelf())
    session.choose_model("konkyo/scenes-clip")
    session.ask("a cat; a rabbit")
    assert {choice.label for choice in session.choices} == {"a cat", "a rabbit"}
    list(session.explain(["grad_cam"]))
    torch.testing.assert_close(made_by(session.code())["results"]["grad_cam"].maps, session.results["grad_cam"].maps)


# --- code -------------------------------------------------------------------------------------------------------------


def test_the_code_makes_the_same_maps_of_a_file(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = 'it\'s "mine"; import os.png'
    scene = konkyo.data.scenes.Scenes(1, seed=7)[0].image
    scene.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    session.take_file(name, (tmp_path / name).read_bytes())
    session.choose_class("cat")
    session.set_against("rabbit")
    list(session.explain(["grad_cam", "smooth_grad_cam_pp"]))
    again = made_by(session.code())["results"]
    for method, result in session.results.items():
        torch.testing.assert_close(again[method].maps, result.maps)


@pytest.mark.parametrize(
    "request_",
    [
        konkyo.ContrastTarget(konkyo.Detections(classes=("a'b",), boxes=((1.0, 2.0, 3.0, 4.5),), top=1), "c"),
        konkyo.Region("road", "all", box=(1.0, 2.0, 3.0, 4.0)),
        konkyo.Token(3),
        "it's\\n",
        7,
    ],
)
def test_code_of_a_target_makes_the_target(request_: Any) -> None:
    assert eval(code_of(request_), {"konkyo": konkyo}) == request_


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_stop_ends_a_method_on_its_way_and_the_network_is_as_before(session: Session) -> None:
    seen: list[int] = []

    def tell(name: str, done: int, total: int | None) -> None:
        del name, total
        seen.append(done)
        session.stop()

    with pytest.raises(Stopped):
        list(session.explain(["grad_cam", "rise", "eigen_cam"], tell))
    assert list(session.results) == ["grad_cam"]
    assert len(seen) == 1  # of many chunks
    assert not session.run.active
    list(session.explain(["grad_cam", "eigen_cam"]))
    fresh = konkyo.explain(konkyo.load(CLASSIFIER), session.picture, method="eigen_cam")
    torch.testing.assert_close(session.results["eigen_cam"].maps, fresh.maps)


def test_another_choice_meanwhile_ends_the_run_and_gets_none_of_its_maps(session: Session) -> None:
    steps = session.explain(["grad_cam", "eigen_cam", "layer_cam"])
    assert next(steps) == "grad_cam"
    session.choose_class("cat")
    with pytest.raises(Stopped):
        list(steps)
    assert session.results == {}
    assert session.chosen is not None
    assert session.chosen.label == "cat"


def test_four_users_of_one_network_get_their_own_maps(shelf: Shelf) -> None:
    sessions = []
    for index in range(4):
        session = Session(shelf)
        session.choose_model(CLASSIFIER)
        session.take_sample(index)
        sessions.append(session)
    methods = ["grad_cam", "integrated_grad_cam", "layer_cam"]
    threads = [threading.Thread(target=lambda s=session: list(s.explain(methods))) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model = konkyo.load(CLASSIFIER)
    for session in sessions:
        for method, expected in konkyo.compare(model, session.picture, methods).items():
            torch.testing.assert_close(session.results[method].maps, expected.maps)


# --- hostile files ----------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def bomb() -> bytes:
    """A PNG of a few kilobytes that would be 10,000 million pixels."""
    header = (100_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(2**20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "contents", "reason"),
    [
        ("cut.png", png(400, 300)[:200], "damaged or cut short|not an image"),
        ("page.html", b"<html><script>alert(1)</script></html>", "not an image"),
        ("picture.svg", b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "not an image"),
        ("text.png", b"no picture", "not an image"),
        ("none.png", b"", "empty"),
        ("bomb.png", bomb(), "million pixels"),
        ("wide.png", png(5000, 4000), "million pixels"),
        ("large.png", b"\x89PNG" + bytes(MOST_BYTES), "MB"),
        ("scan.dcm", bytes(128) + b"DICM" + bytes(99), "--data folder:DIR"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_hostile_files_are_refused_and_the_picture_stays(
    session: Session, name: str, contents: bytes, reason: str
) -> None:
    before = session.picture
    with pytest.raises(KonkyoError, match=reason):
        session.take_file(name, contents)
    assert session.picture is before


def test_what_is_asked_and_decided_is_said_in_the_language_of_the_page(session: Session) -> None:
    pytest.importorskip("gradio")
    from konkyo.apps.web.panels.explain import map_card

    session.lang = "ja"
    session.take_file("teal.png", png())
    session.choose_class("cat")
    result = konkyo.explain(session.model, session.picture, target="cat")
    html = str(map_card(session, "grad_cam", result))
    assert "判定: " in html
    assert not re.search(r"asked|decided|診断", html)
