"""Tries a konkyo that was installed from a wheel: the files that ship, a map, a number, a report, the commands."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import konkyo

SHIPPED = (
    *("py.typed", "report/templates/page.html", "report/strings/en.json", "report/strings/ja.json"),
    *(f"models/weights/scenes-{name}.safetensors" for name in ("classifier", "segmenter", "detr", "vqa", "clip")),
)


def main() -> None:
    """Raises where something is missing or does not work."""
    home = Path(konkyo.__file__).parent
    assert "site-packages" in home.parts, f"{home} is not an installed package"
    assert version("konkyo") == konkyo.__version__
    missing = [name for name in SHIPPED if not (files("konkyo") / name).is_file()]
    assert not missing, f"the wheel lacks {missing}"
    with TemporaryDirectory() as folder:
        model = konkyo.load("konkyo/scenes-classifier")
        scenes = konkyo.data.samples.samples("scenes:3,objects=1")
        result = konkyo.explain(model, scenes)
        result.overlay(0).save(f"{folder}/map.png")
        page = konkyo.report(result, f"{folder}/report.html")
        assert Path(page).stat().st_size > 50_000
        table = konkyo.evaluate(model, "scenes:3,objects=1", ["grad_cam"], ["ebpg@mask"])
        assert 0 < table.values("grad_cam", "ebpg@mask").mean() < 1
    for arguments in (["--help"], ["methods"], ["metrics"], ["layers", "konkyo/scenes-classifier"]):
        subprocess.run([sys.executable, "-m", "konkyo", *arguments], check=True, stdout=subprocess.DEVNULL)
    print(f"konkyo {konkyo.__version__} works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
