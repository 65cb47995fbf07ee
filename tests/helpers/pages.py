"""Pages of reports for tests: drawn pictures and maps, with everything that a page can show."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from PIL import Image

from konkyo.evaluation.diagnose.findings import Evidence, Finding, Severity
from konkyo.report.page import (
    CurveFigure,
    HeatMap,
    ImageRow,
    Line,
    MatrixBlock,
    Measure,
    Neighbour,
    Page,
    Shortlist,
    TableBlock,
    words,
)
from konkyo.report.truth import class_cards, confusion_of, with_mean_maps

CLASSES = ("cat", "dog", "boat", "tower")
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"
"""A name that ends a script and starts another, if it is written as it is."""


def picture(seed: int, side: int = 96) -> Image.Image:
    """Returns a picture of smooth colours and grain, which takes about as many bytes as a photograph."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = generator.normal(0, 6, (side, side, 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def heat_map(seed: int, method: str = "grad_cam", *, side: int = 7, signed: bool = False) -> HeatMap:
    values = torch.randn(side, side, generator=torch.Generator().manual_seed(seed))
    return HeatMap(method, values if signed else values.relu())


def rows(count: int, *, side: int = 96, cells: int = 7) -> tuple[ImageRow, ...]:
    """Returns rows of which every fourth is wrong and every fifth is unsure."""
    made = []
    for k in range(count):
        truth, wrong = CLASSES[k % 4], k % 4 == 3
        decision = CLASSES[(k + 1) % 4] if wrong else truth
        probability = 0.3 if k % 5 == 0 else 0.55 + 0.4 * (k % 7) / 7
        maps = (heat_map(k, side=cells), heat_map(k + 1, "hires_cam", side=cells, signed=True))
        made.append(
            ImageRow(
                name=f"image-{k:03d}.png",
                picture=picture(k, side),
                maps=maps,
                decision=decision,
                probability=probability,
                true_label=truth,
                true_probability=0.1 if wrong else probability,
                asked=decision,
                asked_probability=probability,
                asked_rank=1,
                flags=("unsure",) if probability < 0.5 else (),
                suspicion=(k * 7 % 11) / 11,
            )
        )
    return tuple(made)


def finding(severity: Severity, question: str, subject: str = "") -> Finding:
    return Finding(
        question=question,
        severity=severity,
        subject=subject,
        sentence=words(
            f"{subject or 'The model'} rests on the lower right corner.", f"{subject}は右下に頼っています。"
        ),
        next_step=words("Look at the corner of the pictures below.", "下の画像の隅を見てください。"),
        statistic="mean fall of P(label) when covered, minus that of random windows",
        value=0.18,
        low=0.12,
        high=0.25,
        p=0.001,
        p_adjusted=0.004,
        n=48,
        threshold=0.03,
        cost=960,
        evidence=(
            Evidence(picture(900), words("before", "前")),
            Evidence(picture(901), words("after", "後")),
            Evidence(picture(902).resize((288, 96)), words("several beside each other", "並べた画像")),
        ),
        values={"paste": 0.06},
    )


@functools.cache
def example_page(count: int = 24, *, hostile: bool = False) -> Page:
    """Returns a page with every part, of `count` images. `hostile`: the first image's names are `HOSTILE`."""
    made = list(rows(count))
    row = made[3]
    made[3] = ImageRow(
        **{
            **vars(row),
            "why": words("Boat, called tower: the upper left speaks for tower.", "左上が tower を支持します。"),
            "top": (("cat", 0.6), ("tower", 0.1)),
            "contrasts": (heat_map(77, "cat against tower", signed=True),),
            "neighbours": (Neighbour(picture(800), "train-1.png", "cat", 0.93, heat_map(5)),),
            "evidence": (Evidence(picture(801), words("covered", "隠した画像")),),
        }
    )
    if hostile:
        made[0] = ImageRow(**{**vars(made[0]), "name": HOSTILE, "decision": HOSTILE, "true_label": HOSTILE})
    confusion = confusion_of(made)
    assert confusion is not None
    x = [k / 10 for k in range(11)]
    falling = [1 - v for v in x]
    return Page(
        title=HOSTILE if hostile else "resnet18 on 24 pictures",
        findings=(
            finding("ok", "border"),
            finding("medium", "head"),
            finding("high", "cue", HOSTILE if hostile else "boat"),
            finding("unknown", "background"),
        ),
        not_asked={"duplicates": words("no training data", "学習データなし")},
        shortlists=(Shortlist(words("Probably wrong", "おそらく誤り"), words("Used no labels."), (3, 7, 11)),),
        rows=tuple(made),
        classes=with_mean_maps(class_cards(confusion), made),
        confusion=confusion,
        tables=(
            TableBlock(
                words("Metrics", "指標"),
                ["method", "insertion ↑", "n"],
                [
                    ["grad_cam", Measure(0.61, 0.55, 0.66, best=True), 24],
                    ["hires_cam", Measure(0.4, 0.3, 0.5, worse=True), 24],
                ],
            ),
        ),
        curves=(
            CurveFigure(
                words("Insertion", "挿入"),
                words("share of pixels", "画素の割合"),
                words("probability", "確率"),
                (Line("grad_cam", x, x, [v - 0.1 for v in x], [v + 0.1 for v in x]), Line("hires_cam", x, falling)),
            ),
        ),
        matrices=(
            MatrixBlock(
                words("Rank agreement", "順位の一致"),
                ("grad_cam", "hires_cam"),
                torch.tensor([[1.0, 0.8], [0.8, math.nan]]),
            ),
        ),
        provenance={"model": "resnet18", "source": "https://example.org/weights"},
        command="konkyo explain pictures --model resnet18 --report report.html",
        notes=(words("Labels were read from the folders.", "ラベルはフォルダー名です。"),),
    )
