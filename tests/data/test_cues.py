import numpy as np
import pytest
import torch
from PIL import Image

from konkyo.data.cues import KINDS, Cue, marked
from konkyo.data.samples import samples
from konkyo.errors import KonkyoError


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_lies_in_its_mask_and_nowhere_else(kind: str) -> None:
    picture = Image.new("RGB", (80, 60), (90, 120, 60))
    cue = Cue(kind, "a")
    planted, mask = np.asarray(cue.plant(picture, 3)), cue.mask((80, 60), 3).numpy()
    changed = (planted != np.asarray(picture)).any(-1)
    assert changed[mask].all()
    assert (changed & ~mask).sum() <= 0.5 * mask.sum()  # soft edges
    assert np.array_equal(planted, np.asarray(cue.plant(picture, 3)))


def test_only_pictures_of_the_class_are_marked_and_half_marks_every_second() -> None:
    clean = samples("lesions:12")
    for kind, expected in (("box", [True] * 4), ("half", [True, False, True, False])):
        data = samples(f"lesions:12,cue={kind}:ring")
        changed = [data[i].image.tobytes() != clean[i].image.tobytes() for i in range(12)]
        assert [c for c, label in zip(changed, clean.labels, strict=True) if label == "ring"] == expected
        assert not any(c for c, label in zip(changed, clean.labels, strict=True) if label != "ring")
        assert all(torch.equal(data[i].annotations[0].mask, clean[i].annotations[0].mask) for i in range(3))


def test_what_cannot_be_planted_is_said() -> None:
    with pytest.raises(KonkyoError, match="box:CLASS"):
        samples("lesions:3,cue=star:ring")
    with pytest.raises(KonkyoError, match="class of a cue"):
        samples("lesions:3,cue=box:cat")
    with pytest.raises(KonkyoError, match="no labels"):
        marked(samples("scenes:3"), "box:taxi")
