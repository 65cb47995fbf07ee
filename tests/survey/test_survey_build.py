"""Forms are built from maps: drawn by a rule and a seed, drawn alike, the same bytes each time; and their answers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.folders_of_runs import map_row, run_folder
from helpers.surveys import small_form
from konkyo.apps.cli.main import app
from konkyo.errors import KonkyoError, KonkyoWarning, silenced
from konkyo.explanation.diagnosis import Diagnosis
from konkyo.explanation.reading import digest_of_pixels
from konkyo.explanation.result import Explanation
from konkyo.survey import Drawing, Form, Plan, build, collect, write_answers, write_offline
from konkyo.survey.order import order_of
from konkyo.survey.sampling import population
from konkyo.survey.sources import MapRow
from konkyo.survey.store import Store
from konkyo.targets.classes import ClassTarget
from konkyo.tasks.decision import Decision

LABELS = ("cat", "dog", "boat")


def explanation(method: str, images: int, *, seed: int = 0, rows: int = 1, **values: Any) -> Explanation:
    """So many images in turn of three classes; every picture is its own colour, every map its own noise."""
    generator = torch.Generator().manual_seed(seed)
    count = images * rows
    pictures = tuple(Image.new("RGB", (80, 60), (5 * n, 250 - 5 * n, 90)) for n in range(images))
    labels = tuple(LABELS[(n // rows + n % rows) % 3] for n in range(count))
    known: dict[str, Any] = {
        "signed": torch.randn(count, 4, 5, generator=generator),
        "rectified": True,
        "scores": torch.ones(count),
        "image_index": torch.arange(images).repeat_interleave(rows),
        "targets": tuple(ClassTarget(LABELS.index(label)) for label in labels),
        "labels": labels,
        "method": method,
        "layer": "body",
        "model": "tiny",
        "diagnosis": (Diagnosis("ok"),) * count,
        "decisions": tuple(Decision(LABELS.index(label), label, 0.9, 1, 0.9, True) for label in labels),
        "names": tuple(f"{n // rows}.jpg" for n in range(count)),
        "images": pictures,
    }
    return Explanation(**known | values)


PLAN = Plan(items=24, repeats=2, attention=3, drawing=Drawing(side=96))


def built(out: Path, plan: Plan = PLAN, images: int = 30, **values: Any) -> Form:
    sources = {
        "alpha": explanation("grad_cam", images, seed=1),
        "beta": explanation("layer_cam", images, seed=2, **values),
    }
    return build(sources, out, plan)


def pixels(folder: Path, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(folder / name).convert("RGB"), dtype=int)


def test_a_form_is_the_same_bytes_for_a_seed_and_another_for_another(tmp_path: Path) -> None:
    first, again = built(tmp_path / "a"), built(tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted([*first.digests, "form.json"]) == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert Form.load(tmp_path / "a", verify=True) == again
    other = built(tmp_path / "c", replace(PLAN, seed=1))
    assert other.form_hash != first.form_hash
    assert [i.image for i in other.plain_items] != [i.image for i in first.plain_items]


def test_items_are_drawn_and_counted(tmp_path: Path) -> None:
    form = built(tmp_path / "form")
    assert Counter(item.kind for item in form.items) == {"plain": 24, "repeat": 2, "attention": 3}
    assert form.methods == ("alpha", "beta")
    assert len({item.image for item in form.plain_items}) == 24
    assert form.sampling["rule"] == "simple random"
    assert (form.sampling["possible"], form.sampling["drawn"], form.sampling["seed"]) == (30, 24, 0)
    extra = {item.image for item in form.items if item.kind == "attention"}
    assert not extra & {item.image for item in form.plain_items}  # images that are not asked about
    assert all(item.expected in ("left", "right", "tie") for item in form.items if item.kind == "attention")
    kinds = [item.kind for item in form.items]
    assert kinds != sorted(kinds, key=("plain", "repeat", "attention").index)  # numbers do not tell kinds
    for item in form.items:
        if item.of is not None:
            first = form.item(item.of)
            assert (first.kind, first.pictures, first.original) == ("plain", item.pictures, item.original)


def test_names_of_files_do_not_tell_the_methods(tmp_path: Path) -> None:
    form = built(tmp_path / "form")
    assert not any(method in name for name in form.digests for method in (*form.methods, "grad_cam"))
    first = [item.pictures["alpha"] < item.pictures["beta"] for item in form.plain_items]
    assert 4 <= sum(first) <= 20  # nor does their order


def test_the_times_of_files_do_not_tell_the_methods(tmp_path: Path) -> None:
    """A server tells when a picture was written: in the order of names, which is that of no method."""
    form = built(tmp_path / "form")
    times = [(tmp_path / "form" / name).stat().st_mtime_ns for name in sorted(form.digests)]
    assert times == sorted(times)


def test_an_image_with_many_targets_comes_no_more_often() -> None:
    """Five of 50 images have 40 targets each, as a detector's; of 200 seeds they are the first item in about 20."""
    rows = [
        MapRow((f"{n:02d}", f"{t}", ""), f"{n:02d}", "", f"{t}", method, {})
        for n in range(50)
        for t in range(40 if n < 5 else 1)
        for method in ("a", "b")
    ]
    source = Mock(name="source", rows=lambda: iter(rows))
    source.name = "run"
    firsts = [population([source], (), "random", seed).candidates[0].key for seed in range(200)]
    assert 8 <= sum(image < "05" for image, *_ in firsts) <= 36
    assert len({target for image, target, _ in firsts if image < "05"}) > 5  # any of its targets


def test_strata_are_equally_large(tmp_path: Path) -> None:
    form = built(tmp_path / "form", replace(PLAN, rule="decision"))
    assert Counter(item.stratum for item in form.plain_items) == dict.fromkeys(LABELS, 8) == form.sampling["strata"]
    with pytest.raises(KonkyoError, match="unknown sampling rule"):
        built(tmp_path / "other", replace(PLAN, rule="nicest"))
    with pytest.raises(KonkyoError, match="of an unknown stratum"):
        built(tmp_path / "other", replace(PLAN, rule="true_label"))


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    sources = {
        "alpha": explanation("grad_cam", 30, seed=1, rows=2),
        "beta": explanation("layer_cam", 27, seed=2, rows=2),
    }
    form = build(sources, tmp_path / "form", PLAN)
    assert form.sampling["possible"] == 27
    assert form.sampling["left_out"] == {
        "another target of an image that is in already": 27,
        "not explained by all that are compared": 6,
    }
    assert Counter(item.target for item in form.plain_items).keys() == set(LABELS)


def test_doubtful_maps_stay_in_and_are_counted(tmp_path: Path) -> None:
    form = built(tmp_path / "form", diagnosis=(Diagnosis("all negative", "why"),) * 30)
    assert form.sampling["doubtful_maps"] == {"alpha": 0, "beta": 24}


def test_few_items_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(KonkyoWarning, match="the form has 15 items"):
        built(tmp_path / "form", replace(PLAN, items=15))
    with pytest.warns(KonkyoWarning, match="the form has 9 items"):
        built(tmp_path / "fewer", PLAN, images=9)


def test_both_sides_are_drawn_by_one_rule(tmp_path: Path) -> None:
    """The same map as another method's, ten times as large, gives the same picture; on a joint scale a paler one."""
    one = explanation("grad_cam", 24, seed=1)
    larger = replace(one, signed=one.signed * 10, method="layer_cam")
    plan = replace(PLAN, attention=0)
    form = build({"a": one, "b": larger}, tmp_path / "form", plan)
    for item in form.plain_items:
        assert (pixels(tmp_path / "form", item.pictures["a"]) == pixels(tmp_path / "form", item.pictures["b"])).all()
    joint = build({"a": one, "b": larger}, tmp_path / "joint", replace(plan, drawing=Drawing("joint", side=96)))
    for item in joint.plain_items:
        paler, plain = (pixels(tmp_path / "joint", name) for name in (item.pictures["a"], item.original))
        assert np.abs(paler - plain).mean() < np.abs(pixels(tmp_path / "joint", item.pictures["b"]) - plain).mean()
        assert paler.shape == plain.shape == (72, 96, 3)


def test_evidence_against_counts_as_nothing_of_every_method_unless_signed(tmp_path: Path) -> None:
    one = explanation("grad_cam", 24, seed=1)
    both = replace(one, rectified=False, method="gradient")
    form = build({"a": one, "b": both}, tmp_path / "form", replace(PLAN, attention=0))
    signed = build(
        {"a": one, "b": both}, tmp_path / "signed", replace(PLAN, attention=0, drawing=Drawing(signed=True, side=96))
    )
    for item in form.plain_items:
        assert (pixels(tmp_path / "form", item.pictures["a"]) == pixels(tmp_path / "form", item.pictures["b"])).all()
    differ = [
        (pixels(tmp_path / "signed", i.pictures["a"]) != pixels(tmp_path / "signed", i.pictures["b"])).mean()
        for i in signed.plain_items
    ]
    assert np.mean(differ) > 0.5


@pytest.mark.parametrize("kind", ["shuffled", "blank"])
def test_decoys(tmp_path: Path, kind: str) -> None:
    form = built(tmp_path / "form", replace(PLAN, attention_kind=kind))  # type: ignore[arg-type]
    items = [item for item in form.items if item.kind == "attention"]
    for item in items:
        assert set(item.pictures) == {item.expected, f"({kind})"}
        decoy, real = (pixels(tmp_path / "form", item.pictures[name]) for name in (f"({kind})", item.expected or ""))
        assert (decoy != real).any()
        assert (decoy == pixels(tmp_path / "form", item.original)).all() == (kind == "blank")
    assert len(items) == 3


def test_views_that_differ_are_left_out(tmp_path: Path) -> None:
    one = explanation("grad_cam", 30)
    with pytest.raises(KonkyoError, match="not explained by all"):  # pixels that were seen tell images apart
        build(
            {"a": one, "b": replace(one, images=tuple(p.crop((0, 0, 40, 60)) for p in one.images))},
            tmp_path / "x",
            PLAN,
        )  # type: ignore[union-attr]
    with pytest.raises(KonkyoError, match="its picture cannot be found"):
        build({"a": replace(one, images=None), "b": replace(one, images=None)}, tmp_path / "x", PLAN)


def test_wrong_wishes(tmp_path: Path) -> None:
    with pytest.raises(KonkyoError, match="compares two methods"):
        build({"a": explanation("grad_cam", 30)}, tmp_path / "x", PLAN)
    with pytest.raises(KonkyoError, match=r"unknown method 'gradcam'.*grad_cam, layer_cam"):
        built(tmp_path / "x", replace(PLAN, methods=("grad_cam", "gradcam")))
    with pytest.raises(KonkyoError, match="unknown language"):
        built(tmp_path / "x", replace(PLAN, texts={"fr": {"title": "Cartes"}}))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(KonkyoError, match="is there already"):
        built(tmp_path / "there")
    assert not list(tmp_path.glob(".*"))


# --- runs, the command line, the offline page -------------------------------------------------------------------------


def test_a_run_becomes_a_form_by_the_command(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rows = []
    for n in range(6):
        Image.new("RGB", (60, 40), (40 * n, 10, 10)).save(pictures / f"{n}.png")
        digest = digest_of_pixels(Image.open(pictures / f"{n}.png").convert("RGB"))
        for method in ("grad_cam", "layer_cam", "gradient"):
            rows.append(map_row(f"{n}.png", seed=n, method=method, true_label="cat") | {"sha256": digest})
    run = run_folder(tmp_path / "run", [rows], metrics=())
    runner, out = CliRunner(), tmp_path / "form"
    words = [
        "survey",
        "build",
        "--from",
        str(run),
        "--method",
        "grad_cam,layer_cam",
        "--items",
        "5",
        "--attention",
        "1",
    ]
    words += ["--repeats", "1", "--side", "96", "--data", str(pictures)]
    result = runner.invoke(app, [*words, "--out", str(out), "--offline", str(tmp_path / "form.html")])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "form of 5 items, 1 repeats and 1 attention items, comparing grad_cam, layer_cam" in said
    assert "simple random, seed 0; 5 of 6 images" in said
    assert "warning: the form has 5 items" in said
    form = Form.load(out, verify=True)
    assert form.sources[0]["model"]
    assert "grad_cam" not in (tmp_path / "form.html").read_text(encoding="utf-8")
    again = runner.invoke(app, [*words, "--out", str(tmp_path / "again"), "--json"])
    assert json.loads(again.stdout)["form_hash"] == form.form_hash
    words[words.index("--items") + 1] = "100"
    all_there = runner.invoke(app, [*words, "--out", str(tmp_path / "all")])
    assert "6 of 6 images, fewer than the 100 asked for" in " ".join(all_there.output.split())


def test_it_tells_how_far_it_is(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    sources = {"a": explanation("grad_cam", 3), "b": explanation("layer_cam", 3)}
    plan = replace(PLAN, items=2, repeats=1, attention=1)
    with silenced():
        build(sources, tmp_path / "form", plan, progress=lambda *call: calls.append(call))
    reading = [(done, 3, "reading maps") for done in (1, 2, 3)]
    assert calls == reading + [(done, 4, "drawing items") for done in (1, 2, 3, 4)]


def offline_file(folder: Path, form: Form, rater: str, *, word: str = "left", changes: Any = None) -> Path:
    answers = [
        {
            "item": s.item.id,
            "answer": word,
            "ms": 1000,
            "timestamp": "2026-01-31T09:30:00.000Z",
            "position": at,
            "left": s.item.pictures[s.left],
            "right": s.item.pictures[s.right],
        }
        for at, s in enumerate(order_of(form, rater), 1)
    ]
    values = {"konkyo_survey": 1, "form_hash": form.form_hash, "rater": rater, "answers": answers} | (changes or {})
    file = folder / f"answers-{rater}-{word}.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def test_files_are_joined_and_the_later_answer_counts(tmp_path: Path) -> None:
    form = small_form(tmp_path / "form")
    first = offline_file(tmp_path, form, "ABCD2345")
    later = json.loads(first.read_text(encoding="utf-8"))
    later["answers"] = [{**a, "answer": "right", "timestamp": "2026-02-01T00:00:00Z"} for a in later["answers"][:2]]
    (tmp_path / "later.json").write_text(json.dumps(later), encoding="utf-8")
    other = write_answers(
        collect(form, [offline_file(tmp_path, form, "ZZZZ9999", word="tie")]).answers.values(), tmp_path / "t.csv"
    )
    store = Store(tmp_path / "a.sqlite", form)
    rater = store.enrol()
    showing = order_of(form, rater)[0]
    answer = replace(next(iter(collect(form, [first]).answers.values())), rater=rater, item=showing.item.id)
    store.add(replace(answer, method_left=showing.left, method_right=showing.right), "0" * 24)
    store.close()
    for files in ([tmp_path / "later.json", first], [first, tmp_path / "later.json"]):
        joined = collect(form, [*files, first, other, tmp_path / "a.sqlite"])
        words = Counter((a.rater, a.answer) for a in joined.answers.values())
        assert words == {("ABCD2345", "right"): 2, ("ABCD2345", "left"): 4, ("ZZZZ9999", "tie"): 6, (rater, "left"): 1}
        assert any("2 answers differ" in note for note in joined.notes)
        assert joined.raters == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form_hash": "0" * 64}, "another form"),
        ({"rater": "../../etc"}, "eight characters"),
        ({"rater": 7}, "eight characters"),
        ({"answers": "all left"}, "no file of answers"),
        ({"answers": [{"item": "999"}]}, "no item '999'"),
        ({"answers": [[]]}, "no item"),
        ({"answers": [{"item": "000", "left": "x", "right": "y"}]}, "other pictures"),
        ({"rater": "ZZCD2345"}, "other pictures"),
        ({"konkyo_survey": 2}, "no file of answers"),
    ],
)
def test_offline_files_that_are_wrong_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    form = small_form(tmp_path / "form", plain=12)
    file = offline_file(tmp_path, form, "ABCD2345", changes=changes)
    with pytest.raises(KonkyoError, match=message):
        collect(form, [file])


def test_the_commands_that_gather(tmp_path: Path) -> None:
    form = small_form(tmp_path / "form")
    good = offline_file(tmp_path, form, "ABCD2345")
    bad = offline_file(tmp_path, form, "ZZZZ9999", changes={"form_hash": "0" * 64})
    result = CliRunner().invoke(
        app, ["survey", "import", str(tmp_path / "form"), str(good), str(bad), "--out", str(tmp_path / "a.csv")]
    )
    assert result.exit_code == 3
    assert "left out:" in result.output
    assert "6 answers of 1 raters" in " ".join(result.output.split())
    Store(tmp_path / "a.sqlite", form).close()
    result = CliRunner().invoke(app, ["survey", "export", str(tmp_path / "a.sqlite"), "--out", str(tmp_path / "b.csv")])
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "b.csv").read_text(encoding="utf-8").splitlines()) == 1


def test_the_offline_page_holds_no_method_and_no_address(tmp_path: Path) -> None:
    form = small_form(tmp_path / "form", target="</script><script>alert(1)</script>")
    text = write_offline(form, tmp_path / "form", tmp_path / "form.html").read_text(encoding="utf-8")
    assert "secret" not in text
    assert "</script><script>alert" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert text.count("data:image/webp;base64,") == len(form.digests)
    assert "default-src 'none'" in unescape(text)
