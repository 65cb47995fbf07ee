"""What the tests of several studies share."""

from __future__ import annotations

import pytest
from PIL import Image


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of many panels, which take long, are drawn in one test only."""
    from konkyo.studies.gaze import drawings

    for name in ("mean_maps", "map_grid"):
        monkeypatch.setattr(drawings, name, lambda *_: Image.new("RGB", (1, 1)))
