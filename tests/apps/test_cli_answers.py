"""Networks that answer in words, on the command line: words, given answers, questions, and what cannot be."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from helpers import speakers
from helpers.commands import Run, runner, told

pytestmark = [
    pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
QUESTION = "how many cat ?"


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    """(a picture, a folder with a BLIP that answers questions)"""
    import transformers

    folder = tmp_path_factory.mktemp("blip")
    speakers.blip_answerer(1).save_pretrained(folder)
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, speakers.tokenizer()).save_pretrained(folder)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    picture.save(folder / "one.png")
    return folder / "one.png", f"hf/{folder}"


@pytest.fixture
def konkyo(tmp_path, monkeypatch, capsys) -> Run:
    return runner("", "", tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (("--answer", "yes"), ["yes"]),
        (("--answer", "yes", "--not", "no"), ["yes, not no"]),
        (("--class", "yes", "--class", "no"), ["yes", "no"]),
        (("--answer", "two umbrellas", "--target", "words"), ["two", "umbrellas"]),
        (("--answer", "two umbrellas", "--target", "word:umbrellas", "--target", "token:0"), ["umbrellas", "two"]),
        (("--target", "answer:a cat"), ["a cat"]),
    ],
)
def test_what_is_explained(konkyo: Run, answerer, tmp_path, options, labels):
    picture, model = answerer
    run = ("explain", str(picture), "--model", model, "--question", QUESTION, *options, "--out", str(tmp_path / "out"))
    found = konkyo(*run, "--json")
    assert found.code == 0, found.err
    assert [entry["label"] for entry in found.json["images"][0]["maps"]] == labels


def test_a_report_of_the_folder_has_the_answer_to_click(konkyo: Run, answerer, tmp_path):
    picture, model = answerer
    out = tmp_path / "out"
    words = ("--answer", "two umbrellas", "--target", "words")
    assert (
        konkyo("explain", str(picture), "--model", model, "--question", QUESTION, *words, "--out", str(out)).code == 0
    )
    assert konkyo("report", str(out)).code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    found = re.search(r'id="k-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert data["answers"] == [{"q": QUESTION, "p": ["two", " umbrella", "s"]}]
    assert [row["w"] for row in data["rows"]] == [[0, [0]], [0, [1, 2]]]


def test_what_cannot_be(konkyo: Run, answerer, tmp_path):
    from transformers.utils import logging

    logging.disable_progress_bar()  # of the loading of weights
    picture, model = answerer
    run = ("explain", str(picture), "--out", str(tmp_path))
    ours = (*run, "--model", model, "--question", QUESTION)
    told(konkyo(*run, "--model", "konkyo/scenes-classifier", "--answer", "yes"), "--answer", "does not answer in words")
    told(konkyo(*ours, "--answer", "yes", "--target", "class:cat"), "targets such as answer, token:0")
    told(konkyo(*ours, "--answer", "a cat", "--target", "word:dog"), "no word 'dog' in the answer 'a cat'")
    told(konkyo(*ours, "--top", "2"), "--top", "network that answers in words")
