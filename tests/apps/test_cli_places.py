"""Videos, volumes and arrays on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.commands import Run, runner, told

_OF_VOLUMES = """
import konkyo
from torch import nn

def build():
    network = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    return konkyo.Model(network, axes="NCDHW", classes=["a", "b"], reader=konkyo.Volumes(window=(0, 1)))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner("", "net.py:build", tmp_path, monkeypatch, capsys)


def test_a_volume_is_explained_and_its_map_lies_in_its_space(run: Run, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    volume = np.random.default_rng(0).uniform(0, 1, (10, 12, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "scan.nii.gz")
    (tmp_path / "net.py").write_text(_OF_VOLUMES)
    arguments = ["--model", "net.py:build", "--method", "hires_cam,occlusion", "--out", str(tmp_path / "why")]
    run("explain", str(tmp_path / "scan.nii.gz"), *arguments, "--option", "window=4,4,4", "--option", "stride=4,4,4")
    written = nibabel.load(tmp_path / "why" / "scan.nii.hires_cam.nii.gz")
    assert np.array_equal(written.affine, affine)
    assert written.shape == volume.shape
    assert (tmp_path / "why" / "scan.nii.occlusion.png").is_file()
    listed = run("layers", "net.py:build", "--size", "10x12x8")
    assert "5x6x4" in listed.out


def test_an_array_and_frames_are_explained(run: Run, tmp_path: Path) -> None:
    code = _OF_VOLUMES.replace("Conv3d(1,", "Conv3d(3,").replace("NCDHW", "NCTHW")
    code = code.replace("konkyo.Volumes(window=(0, 1))", "konkyo.Clips(4, konkyo.Preprocess(8, 8))")
    (tmp_path / "net.py").write_text(code)
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).normal(size=(3, 6, 8, 8)))
    (tmp_path / "frames").mkdir()
    for number in range(5):
        Image.new("RGB", (10, 9), (50 * number, 0, 0)).save(tmp_path / "frames" / f"{number}.png")
    arguments = ["--model", "net.py:build", "--method", "hires_cam", "--out", str(tmp_path / "why")]
    run("explain", str(tmp_path / "clip.npy"), str(tmp_path / "frames"), *arguments)
    names = {path.name for path in (tmp_path / "why").iterdir()}
    assert {"clip.hires_cam.gif", "clip.hires_cam.png", "frames.hires_cam.gif", "frames.hires_cam.npz"} <= names
    told(run("compare", "frames", "--model", "net.py:build", "--out", "sheet.png"), "takes none")
