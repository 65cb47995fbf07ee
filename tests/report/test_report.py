"""report(): from results to pages, what a page says of what made it, and what an anonymous one leaves out."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import konkyo
from helpers.pages import example_page, rows
from helpers.paths import DOCS
from konkyo.report.builders import BUILDERS, Request, page_of
from konkyo.report.data import some_of
from konkyo.report.page import Page
from konkyo.report.provenance import weights_hash
from konkyo.report.report import anonymised, with_fewer_pictures
from konkyo.report.truth import accuracy, class_cards, confusion_of, with_mean_maps


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


@pytest.fixture
def model() -> konkyo.Model:
    preprocess = konkyo.Preprocess(resize=None, crop=16)
    return konkyo.Model(network(), preprocess, ("cat", "dog", "cow"), name="tiny")


@pytest.fixture
def results(model: konkyo.Model) -> dict[str, konkyo.Explanation]:
    noise = torch.randint(0, 255, (6, 16, 16, 3), dtype=torch.uint8).numpy()
    pictures = [Image.fromarray(pixels) for pixels in noise]
    made = konkyo.compare(model, pictures, ["grad_cam", "hires_cam"], layer="0")
    names = tuple(f"p{k}.png" for k in range(6))
    return {name: replace(r, names=names, true_labels=("cat", "dog", "cow") * 2) for name, r in made.items()}


def data_of(file: Path) -> Any:
    text = re.search(r'id="k-data">(.*?)</script>', file.read_text(encoding="utf-8"), re.S)
    assert text
    return json.loads(text[1])


def test_rows_say_what_the_explanations_say(results: dict[str, konkyo.Explanation], tmp_path: Path) -> None:
    file = konkyo.report(results, tmp_path / "report.html")
    data, first = data_of(file), results["grad_cam"]
    assert data["methods"] == ["grad_cam", "hires_cam"]
    assert [row["n"] for row in data["rows"]] == list(first.names)
    for row, decision, truth in zip(data["rows"], first.decisions, first.true_labels, strict=True):
        assert decision is not None
        assert (row["d"], row["t"]) == (decision.label, truth)
        assert row["dp"] == pytest.approx(decision.probability, rel=1e-4)
        assert ("wrong" in row.get("f", [])) == (decision.label != truth)


def test_one_explanation_a_list_and_a_dict_are_reports(results: dict[str, konkyo.Explanation], tmp_path: Path) -> None:
    one = konkyo.report(results["grad_cam"], tmp_path / "one.html", title="one of them")
    assert "<h1>one of them</h1>" in one.read_text(encoding="utf-8")
    many = konkyo.report(list(results.values()), tmp_path / "many.html")
    assert data_of(many)["methods"] == ["grad_cam", "hires_cam"]


def test_explanations_without_pictures_names_or_labels_are_a_report(
    results: dict[str, konkyo.Explanation], tmp_path: Path
) -> None:
    path = replace(results["grad_cam"], names=(), true_labels=()).save(tmp_path / "maps.safetensors")
    file = konkyo.report(konkyo.Explanation.load(path), tmp_path / "report.html")
    data = data_of(file)
    assert data["rows"][0]["n"] == "image 1"
    assert "p" not in data["rows"][0]


def test_several_targets_of_an_image_share_its_picture(model: konkyo.Model, tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16), "teal")
    result = konkyo.explain(model, [picture, picture.copy()], target=konkyo.TopK(2), layer="0")
    rows = data_of(konkyo.report(result, tmp_path / "report.html"))["rows"]
    assert [row["p"] for row in rows] == [0, 0, 1, 1]
    assert [row["ar"] for row in rows] == [1, 2, 1, 2]


def test_unequal_rows_and_other_things_are_refused(results: dict[str, konkyo.Explanation], tmp_path: Path) -> None:
    first = results["grad_cam"]
    with pytest.raises(konkyo.KonkyoError, match="the same classes of the same images"):
        konkyo.report([first, first.of_image(0)], tmp_path / "report.html")
    for nothing in (3, [], [first, 3], "report"):
        with pytest.raises(konkyo.KonkyoError, match="Explanation"):
            konkyo.report(nothing, tmp_path / "report.html")
    with pytest.raises(konkyo.KonkyoError, match="html"):
        konkyo.report(first, tmp_path / "report.pdf")
    with pytest.raises(konkyo.KonkyoError, match="language"):
        konkyo.report(first, tmp_path / "report.html", lang="fr")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_weights_hash_is_that_of_names_types_shapes_and_bytes() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        kind = {torch.float32: "torch.float32", torch.int64: "torch.int64"}[tensor.dtype]
        digest.update(f"{name}:{kind}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    assert weights_hash(module) == digest.hexdigest()
    with torch.no_grad():
        next(module.parameters())[0, 0] += 1e-3
    assert weights_hash(module) != digest.hexdigest()
    assert len(weights_hash(module.to(torch.bfloat16))) == 64


def test_provenance_names_model_layers_options_and_versions(
    results: dict[str, konkyo.Explanation], model: konkyo.Model
) -> None:
    page = page_of(results, Request(model=model, command="konkyo compare pictures"))
    assert page.provenance["weights SHA-256"] == weights_hash(model.module)
    assert page.provenance["grad_cam: layer"] == "0"
    assert page.provenance["torch"] == torch.__version__
    assert page.command == "konkyo compare pictures"


def test_an_anonymous_page_names_no_file(results: dict[str, konkyo.Explanation], tmp_path: Path) -> None:
    file = konkyo.report(results, tmp_path / "report.html", anonymous=True, command="konkyo explain p0.png")
    text = file.read_text(encoding="utf-8")
    assert re.search(r"p\d\.png", text) is None
    assert "konkyo explain" not in text
    assert "image 1" in text
    page = anonymised(replace(example_page(), verdict={"en": "image-003.png and image-003.pngs"}))
    assert page.verdict == {"en": "image 4 and image-003.pngs"}
    assert {n.name for row in page.rows for n in row.neighbours} == {"image 25"}


def test_an_anonymous_page_has_no_path_of_files_that_it_does_not_show() -> None:
    leaks = (
        "the first: /home/j smith/scans/Smith, Anna.png is not an image",
        "(expected a folder, as in folder:DIR; '/home/smith' is none)",
        "True labels: from smith.csv; 3 images have no line in it.",
        r"C:\Users\smith\a.jpg cannot be read",
        "smith/val/red/b.jpeg cannot be read",
        "smith/models.py:build grad_cam",
        "trained/smith grad_cam",
        "hf/./smith grad_cam",
    )
    page = replace(
        example_page(),
        notes=tuple({"en": leak} for leak in leaks),
        provenance={"train": "folder:smith,split=val", "model": "ward/smith.pth", "layer": "W / T of layer4.1"},
    )
    clean = anonymised(page)
    said = [*(note["en"] for note in clean.notes), *clean.provenance.values()]
    assert "smith" not in " ".join(said).lower()
    assert said[0] == "the first: (a file) is not an image"
    assert clean.provenance == {"model": "(a file)", "layer": "W / T of layer4.1"}


def test_of_many_rows_the_flagged_ones_keep_their_pictures() -> None:
    page = Page(title="many", rows=rows(40, side=8))
    fewer = with_fewer_pictures(page, 12)
    kept = [row for row in fewer.rows if row.picture is not None]
    assert len(fewer.rows) == 40
    assert len(kept) == 12
    assert sum(bool(row.flags) or row.correct is False for row in kept) == 8
    assert "12 of 40" in fewer.notes[-1]["en"]
    assert with_fewer_pictures(page, 40) is page


def test_accuracy_has_wilsons_interval() -> None:
    correct, n, low, high = accuracy(rows(24, side=8))
    assert (correct, n) == (18, 24)
    assert (low, high) == pytest.approx(
        (0.5510, 0.8800), abs=1e-4
    )  # statsmodels' proportion_confint(18, 24, method="wilson")


def test_class_cards_count_what_a_loop_counts() -> None:
    made = rows(24, side=8)
    confusion = confusion_of(made)
    assert confusion is not None
    for card in with_mean_maps(class_cards(confusion), made):
        of_class = [row for row in made if row.true_label == card.name]
        given = [row for row in made if row.decision == card.name]
        hits = sum(row.decision == card.name for row in of_class)
        assert card.n == len(of_class)
        assert card.recall == hits / len(of_class)
        assert card.precision == pytest.approx(hits / len(given)) if given else card.precision != card.precision
        for other, count in card.confused:
            pair = {card.name, other}
            assert count == sum({r.true_label, r.decision} == pair for r in made)
        if given:
            assert card.mean_map is not None
            assert card.mean_map.shape == (14, 14)
            assert set(card.typical).isdisjoint(card.deviant)


def test_rows_without_a_picture_take_no_place_of_those_that_have_one() -> None:
    page = Page(title="many", rows=rows(60, side=8))
    half = replace(page, rows=tuple(replace(r, picture=None) if k % 2 else r for k, r in enumerate(page.rows)))
    fewer = with_fewer_pictures(half, 30)
    assert sum(row.picture is not None for row in fewer.rows) == 30
    assert "30 of 60" in fewer.notes[-1]["en"]


def test_as_many_pictures_are_opened_as_are_wanted() -> None:
    names = [str(k) for k in range(40)]
    assert some_of(names, None) == names
    assert some_of(names, 40) == names
    some = some_of(names, 10, {"7", "39"})
    assert some[:2] == ["7", "39"]
    assert len(set(some)) == 10
    assert some_of(names, 10, set(names)) == names[:10]


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_the_examples_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "report.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    before = dict(BUILDERS)
    try:
        exec(compile("\n".join(blocks), "report.md", "exec", dont_inherit=True), {"__name__": "docs"})
    finally:
        BUILDERS.clear()
        BUILDERS.update(before)
    assert {file.name for file in tmp_path.iterdir()} == {"report.html", "audit.html"}
