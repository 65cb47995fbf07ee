"""Explanations in a notebook: rows chosen in every way, what is shown of them, and what other tools get."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import html5lib
import numpy as np
import pandas
import pytest
import supervision
import torch
from matplotlib.figure import Figure
from PIL import Image

import konkyo
from konkyo.draw import text as fonts
from konkyo.engine.path import PathTrace
from konkyo.explanation.diagnosis import Diagnosis
from konkyo.tasks.decision import Decision

LABELS = ("cat", "dog", "cat", "<b>fox</b>", "猫")


def judged(row: int) -> Diagnosis:
    return Diagnosis("all negative", "say <i>why</i>") if row == 1 else Diagnosis("ok")


def decided(label: str) -> Decision:
    return Decision(0, "cat", 0.75, 1, 0.75) if label == "cat" else Decision(0, "cat", 0.75, 2, 0.125)


def made(rows: int = 5, **more: Any) -> konkyo.Explanation:
    """Rows 0 and 1 are of the first image, every other of one of its own."""
    index = torch.tensor([0, *range(rows - 1)])
    labels = [LABELS[r % 5] for r in range(rows)]
    values: dict[str, Any] = {
        "signed": torch.rand(rows, 4, 6),
        "rectified": True,
        "scores": torch.arange(rows).float(),
        "image_index": index,
        "targets": tuple(konkyo.ClassTarget(r) for r in range(rows)),
        "labels": tuple(labels),
        "method": "grad_cam",
        "layer": "layer4",
        "model": "resnet",
        "diagnosis": tuple(map(judged, range(rows))),
        "decisions": tuple(map(decided, labels)),
        "names": tuple(f"{i}.png" for i in index.tolist()),
        "true_labels": tuple("cat" if r % 2 else "dog" for r in range(rows)),
        "regions": None,
        "images": tuple(Image.new("RGB", (60, 40), (40 * i % 255, 90, 120)) for i in range(max(1, rows - 1))),
        "path": PathTrace(torch.rand(rows, 3), torch.rand(rows, 2), torch.rand(rows, 3), torch.rand(rows, 3, 4)),
    }
    return konkyo.Explanation(**(values | more))


CHOICES: list[tuple[Any, list[int]]] = [
    (0, [0]),
    (-1, [4]),
    (np.int64(2), [2]),
    (torch.tensor(3), [3]),
    (slice(2, 5), [2, 3, 4]),
    (slice(None, None, -2), [4, 2, 0]),
    ("cat", [0, 2]),
    ("2.png", [3]),
    ([3, 1], [3, 1]),
    ((), []),
    (torch.tensor([True, False, False, True, True]), [0, 3, 4]),
    (np.array([False, True, False, False, False]), [1]),
    ([False] * 5, []),
    (torch.tensor([4, -5]), [4, 0]),
]


@pytest.mark.parametrize(("choice", "rows"), CHOICES, ids=[str(c)[:30] for c, _ in CHOICES])
def test_everything_follows_the_rows_that_are_chosen(choice: Any, rows: list[int]) -> None:
    whole = made()
    part = whole[choice]
    assert len(part) == len(rows)
    for place, row in enumerate(rows):
        assert torch.equal(part.signed[place], whole.signed[row])
        assert part.picture(place) == whole.picture(row)
        for name in ("labels", "targets", "diagnosis", "decisions", "names", "true_labels"):
            assert getattr(part, name)[place] == getattr(whole, name)[row]
        assert part.path is not None
        assert whole.path is not None
        assert torch.equal(part.path.alphas[place], whole.path.alphas[row])
    seen = list(dict.fromkeys(part.image_index.tolist()))
    assert seen == list(range(len(seen)))  # numbered anew, in order
    assert len(part.images or ()) == len(seen)


def test_slices_are_views_and_iteration_ends() -> None:
    whole = made(images=torch.rand(4, 3, 40, 60))
    assert whole[1:3].signed.data_ptr() == whole.signed[1:].data_ptr()
    rows = list(whole)
    assert [part.labels[0] for part in rows] == list(whole.labels)
    assert all(len(part) == 1 and part.image_index.tolist() == [0] for part in rows)
    assert torch.equal(rows[4].images[0], whole.images[3])  # type: ignore[index]


@pytest.mark.parametrize(
    ("choice", "kind", "words"),
    [
        (5, IndexError, "5 rows"),
        (-6, IndexError, "0 to 4"),
        ([0, 9], IndexError, "row 9"),
        ("dgo", KeyError, "did you mean 'dog'"),
        (torch.tensor([True]), IndexError, "each of the 5 rows"),
        (1.5, konkyo.KonkyoError, "float"),
        (None, konkyo.KonkyoError, "None"),
    ],
)
def test_rows_that_are_not_there_are_told_with_what_is_there(choice: Any, kind: type[Exception], words: str) -> None:
    if choice is None:
        choice = object()
        words = "object"
    with pytest.raises(kind, match=words) as caught:
        made()[choice]
    assert isinstance(caught.value, konkyo.KonkyoError)
    assert not str(caught.value).startswith("'")


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_a_repr_is_three_short_lines() -> None:
    lines = repr(made()).splitlines()
    assert lines[0] == "Explanation: 5 maps 4x6 of 4 images, grad_cam at layer4 of resnet"
    assert lines[1] == "  cat (P 0.75), dog (P 0.12), cat (P 0.75), <b>fox</b> (P 0.12), ..."
    assert lines[2:] == ["  doubtful: 1 of 5 maps: all negative"]
    assert len(repr(made(0)).splitlines()) == 1


def test_html_shows_twelve_overlays_escaped_with_words_and_no_script() -> None:
    text = made(100)._repr_html_()
    page = html5lib.HTMLParser(strict=False, namespaceHTMLElements=False).parse(text)
    pictures = page.findall(".//img")
    assert len(pictures) == 12
    assert all(picture.get("alt") for picture in pictures)
    assert page.findall(".//script") == []
    assert page.findall(".//i") == []
    words = "".join(page.itertext())
    for said in ("asked: <b>fox</b> (logit 3.00", "wrong, true label: dog", "say <i>why</i>", "and 88 more"):
        assert said in words
    assert len(text) < 300_000


def test_pictures_that_do_not_compress_still_fit_a_notebook() -> None:
    noise = tuple(
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (500, 500, 3), np.uint8)) for i in range(11)
    )
    result = made(12, images=noise)
    png = result._repr_png_()
    assert png is not None
    assert len(result._repr_html_()) + len(png) < 300_000


def test_without_pictures_the_maps_alone_are_shown() -> None:
    alone = made(images=None)
    assert "Maps alone are shown" in alone._repr_html_()
    assert alone._repr_html_().count("<img") == 5
    assert alone.sheet().width > 300
    assert len(alone.plot().axes) == 8 + 5  # two lines of four, five scales


def test_what_cannot_be_drawn_is_told() -> None:
    signals = made(signed=torch.rand(5, 2, 3, 4, 4), images=None)
    assert "Not drawn: maps 2x3x4x4 have no picture" in signals._repr_html_()
    assert signals._repr_png_() is None


def test_a_plot_has_titles_and_the_scale_of_each_map(monkeypatch: pytest.MonkeyPatch) -> None:
    result = made()
    figure = result.plot([1, 2], columns=1)
    assert isinstance(figure, Figure)
    panels, bars = figure.axes[:2], figure.axes[2:]
    title = panels[0].get_title(loc="left").splitlines()
    assert title == [
        "0.png",
        "asked: dog (logit 1.00)",
        "P 0.12, rank 2",
        "decided: cat (P 0.75)",
        "true label: cat",
        "! all negative",
    ]
    assert [float(label.get_text()) for label in bars[0].get_xticklabels()] == pytest.approx(
        [float(result.maps[1].min()), float(result.maps[1].max())], rel=0.01
    )
    assert "own scale" in figure.get_suptitle()
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    own = Figure()
    assert result.plot(0, ax=own.subplots()) is own
    with pytest.raises(konkyo.KonkyoError, match="ax= takes one row"):
        result.plot([0, 1], ax=Figure().subplots())
    with pytest.raises(konkyo.KonkyoError, match="none"):
        result.plot([])


def test_a_sheet_has_pages_and_is_what_save_writes(tmp_path: Path) -> None:
    result = made(41)
    result.save(tmp_path / "x.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x-2.png", "x.png"]
    assert Image.open(io.BytesIO((tmp_path / "x-2.png").read_bytes())).tobytes() == result.sheet(page=2).tobytes()
    assert result.sheet(page=2).height < result.sheet().height
    with pytest.raises(konkyo.KonkyoError, match="page 3 of a sheet with 2 pages"):
        result.sheet(page=3)
    made().save(tmp_path / "y.webp")
    assert (tmp_path / "y.webp").read_bytes()[8:12] == b"WEBP"


def test_a_caption_stands_under_the_overlay() -> None:
    result = made()
    plain, said = result.overlay(1), result.overlay(1, caption=True)
    assert said.width == 300  # 60 pixels are too few for words
    assert said.height > plain.height * 5
    own = result.overlay(1, caption="one line")
    assert plain.height * 5 < own.height < said.height
    long = result.overlay(1, caption="word " * 400)
    assert long.width == 300
    assert long.height < 400


@pytest.mark.parametrize("draw", [lambda r: r.sheet(), lambda r: r.plot()], ids=["sheet", "figure"])
def test_japanese_is_drawn_by_the_font_of_the_extra(
    draw: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pixels() -> np.ndarray[Any, Any]:
        drawing = draw(made(1, labels=("猫の写真",)))
        if isinstance(drawing, Figure):
            buffer = io.BytesIO()
            drawing.savefig(buffer, format="png")  # a warning of a missing glyph is an error here
            drawing = Image.open(buffer)
        return np.asarray(drawing.convert("RGB"))

    def clear() -> None:
        fonts._system_fonts.cache_clear()
        fonts._file_of.cache_clear()

    if importlib.util.find_spec("matplotlib_fontja") is None:  # an import would change the fonts of all figures
        pytest.skip("the fonts extra is not installed")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", list)
    try:
        clear()
        fonts._missing.clear()
        glyphs = pixels()
        assert fonts.missing() == ""
        assert any(file.endswith("ipaexg.ttf") for file in fonts._packaged_fonts())
        monkeypatch.setattr(fonts, "_packaged_fonts", list)
        clear()
        boxes = pixels()
        assert set("猫の写真") <= set(fonts.missing())
        assert glyphs.shape != boxes.shape or not np.array_equal(glyphs, boxes)
    finally:
        clear()


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_arrays_tables_and_devices() -> None:
    result = made()
    assert np.array_equal(result.numpy(), result.maps.numpy())
    table = result.to_frame()
    assert list(table["correct"]) == [False, True, False, True, False]
    assert list(table["asked_probability"]) == [0.75, 0.125, 0.75, 0.125, 0.125]
    assert list(table["image"]) == list(result.names)
    bare = made(decisions=(), diagnosis=(), names=(), true_labels=()).to_frame()
    assert bare["probability"].isna().all()
    assert list(bare["image"])[:3] == ["image 1", "image 1", "image 2"]
    moved = result.to("meta")
    assert moved.signed.is_meta
    assert moved.path is not None
    assert moved.path.alphas.is_meta


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, use in {
        "pandas": lambda: made().to_frame(),
        "supervision": lambda: made(1).to_supervision(),
        "fiftyone": lambda: made().to_fiftyone(),
    }.items():
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(konkyo.KonkyoError, match=f"pip install {library}"):
            use()


def square() -> konkyo.Explanation:
    """A map that is 1 on columns 10 to 29 and rows 20 to 39 of its picture, at its size."""
    map_ = torch.zeros(1, 40, 60)
    map_[0, 20:40, 10:30] = 1
    return made(1, signed=map_, boxes=None)


def test_coco_has_the_cut_map_as_a_mask() -> None:
    coco = square().to_coco()
    (image,), (note,), (category,) = coco["images"], coco["annotations"], coco["categories"]
    assert (image["width"], image["height"], image["file_name"]) == (60, 40, "0.png")
    assert note["bbox"] == [10, 20, 20, 20]
    assert note["area"] == 400
    assert note["score"] == 0.75
    assert category == {"id": note["category_id"], "name": "cat"}
    tall, wide = note["segmentation"]["size"]
    runs = note["segmentation"]["counts"]
    flat = np.concatenate([np.full(run, place % 2) for place, run in enumerate(runs)])
    decoded = flat.reshape(wide, tall).T  # COCO's runs go down the columns, zeros first
    expected = np.zeros((40, 60), np.uint8)
    expected[20:40, 10:30] = 1
    assert np.array_equal(decoded, expected)


def test_supervision_gets_boxes_masks_and_classes_of_one_image() -> None:
    detections = square().to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == [[10, 20, 30, 40]]
    assert detections.mask.sum() == 400  # type: ignore[union-attr]
    assert detections.class_id.tolist() == [0]  # type: ignore[union-attr]
    assert detections.data["class_name"].tolist() == ["cat"]
    boxed = made(1, boxes=torch.tensor([[1.0, 2, 30, 20]])).to_supervision()
    assert boxed.xyxy.tolist() == [[1, 2, 30, 20]]
    with pytest.raises(konkyo.KonkyoError, match="of one image"):
        made().to_supervision()
    assert len(made(0).to_supervision()) == 0
    blank = made(1, signed=torch.zeros(1, 4, 6)).to_supervision()
    assert blank.mask.sum() == 0  # type: ignore[union-attr]
    with pytest.raises(konkyo.KonkyoError, match="does not keep"):
        made(1, images=None).to_coco()


def test_runs_of_a_mask_begin_with_those_of_zeros() -> None:
    map_ = torch.zeros(1, 3, 4)
    map_[0, 0, 0] = map_[0, :, 3] = 1
    (note,) = made(1, signed=map_, boxes=None, images=(Image.new("RGB", (4, 3)),)).to_coco()["annotations"]
    assert note["segmentation"] == {"size": [3, 4], "counts": [0, 1, 8, 3]}
    assert note["bbox"] == [3, 0, 1, 3]  # of the largest part


def test_a_row_is_cut_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enlarging all maps for every row would cost the square of the rows."""
    sizes = list[int]()
    enlarge = konkyo.Explanation.at
    monkeypatch.setattr(konkyo.Explanation, "at", lambda self, size: sizes.append(len(self)) or enlarge(self, size))
    made().to_coco()
    assert sizes == [1] * 5


def test_fiftyone_gets_heat_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = types.ModuleType("fiftyone")
    stub.Heatmap = lambda **values: values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fiftyone", stub)
    result = made(rectified=False, signed=torch.tensor([[[-3.0, 1.0]], [[0.5, 2.0]], [[0.0, 0.0]], [[1, 2]], [[1, 2]]]))
    first, second, constant, *_ = result.to_fiftyone()
    assert first["range"] == [-3, 3]
    assert second["range"] == [0.5, 2]
    assert constant["range"] == [0, 1]
    assert np.array_equal(first["map"], [[-3, 1]])
    assert first["label"] == "cat"


def test_explanations_are_pickled_with_every_target() -> None:
    targets = (
        konkyo.ClassTarget(1, "probability"),
        konkyo.Against(konkyo.ClassTarget(1)),
        konkyo.ContrastTarget(konkyo.ClassTarget(1), konkyo.ClassTarget(2)),
        konkyo.InstanceTarget(0, (1.0, 2.0, 3.0, 4.0), (0.5, 0.5), 3),
        "a callable that was loaded",
    )
    result = made(targets=targets)
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert again.targets == targets
        assert torch.equal(again.maps, result.maps)
        assert pandas.testing.assert_frame_equal(again.to_frame(), result.to_frame()) is None


def test_sums_and_regions_need_no_lambda() -> None:
    output = torch.rand(2, 3)
    total = konkyo.SumTarget(konkyo.ClassTarget(0), konkyo.ClassTarget(2))
    torch.testing.assert_close(total(output), output[:, 0] + output[:, 2])
    dense = torch.rand(2, 4, 6, 8)
    torch.testing.assert_close(konkyo.RegionTarget(3)(dense), dense[:, 3].mean((1, 2)))
    corner = konkyo.RegionTarget(1, (0.5, 0, 1, 0.5))
    torch.testing.assert_close(corner(dense), dense[:, 1, :3, 4:].mean((1, 2)))
    assert pickle.loads(pickle.dumps((total, corner))) == (total, corner)
    for wrong, given in ((corner, output), (konkyo.RegionTarget(4), dense)):
        with pytest.raises(konkyo.KonkyoError):
            wrong(given)
    with pytest.raises(konkyo.KonkyoError, match="shares of the output"):
        konkyo.RegionTarget(0, (0, 0, 0, 1))
    model = konkyo.load("konkyo/scenes-classifier")
    images = torch.rand(2, 3, 128, 128)
    both = konkyo.explain(model, images, target=konkyo.SumTarget("cat", 1), method="hires_cam")
    parts = [konkyo.explain(model, images, target=name, method="hires_cam").signed for name in ("cat", "rabbit")]
    torch.testing.assert_close(both.signed, parts[0] + parts[1], rtol=1e-4, atol=1e-6)
    assert both.labels == ("cat + rabbit",) * 2
