"""Several users of one server at once."""

from __future__ import annotations

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import konkyo
from helpers.gradio_queue import joined, output_of
from konkyo.apps.web.shelf import Shelf
from konkyo.explanation.result import Explanation

pytest.importorskip("gradio")
pytest.importorskip("httpx")
METHOD = "integrated_grad_cam"


def test_four_people_explore_one_model_at_once_and_get_right_maps(address: str, shelf: Shelf, tmp_path: Path) -> None:
    def visited(user: int) -> Path:
        """One user takes their own sample, explains it and downloads the map -> the file."""
        session = f"user{user}"
        joined(address, "samples", [None], session, choice=user)
        joined(address, "explain", [None, [METHOD]], session)
        answer = joined(address, "download-safetensors", [None], session)
        links = output_of(address, answer, "download-safetensors", "links")
        (data,) = re.findall(r"base64,([^\"]+)", links)
        file = tmp_path / f"{user}.safetensors"
        file.write_bytes(base64.b64decode(data))
        return file

    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(visited, range(4)))
    model = konkyo.load("konkyo/scenes-classifier")
    for sample, file in zip(shelf.samples("konkyo/scenes-classifier"), files, strict=True):
        expected = konkyo.explain(model, sample.image, method=METHOD)
        result = Explanation.load(file)
        assert result.labels == expected.labels
        torch.testing.assert_close(result.maps, expected.maps)
