"""The question "cue": which classes rest on a place in the picture, such as a watermark?"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from PIL import Image

from konkyo.draw.overlay import overlay
from konkyo.evaluation.diagnose.changed import pictured
from konkyo.evaluation.diagnose.collected import Collected, question
from konkyo.evaluation.diagnose.cue_test import LEAST_CLASSES, RULE, CueTest, cue_cost, cue_tests
from konkyo.evaluation.diagnose.evidence import beside, framed
from konkyo.evaluation.diagnose.findings import NOTHING_TO_DO, Evidence, Finding, Severity, Text, worded
from konkyo.evaluation.diagnose.places import place_at
from konkyo.evaluation.diagnose.text import OFTEN, share_like_text
from konkyo.metrics.distances import on_grid

_STATISTIC = "fall of P(label) with the window covered, less that of windows elsewhere"
_SHOWN = 12
_REASONS = {
    "images": worded(
        "{{n}} images are too few for a test at this error rate", "画像が {{n}} 枚ではこの誤り率の検定に足りません"
    ),
    "cells": worded(
        "the maps have too few cells; name another layer", "マップのセルが少なすぎます。別の層を指定してください"
    ),
    "classes": worded("there are images of one class only", "画像が 1 クラスしかありません"),
}
_UNSURE = worded(
    " With {{n}} images this may still be chance (p = {{p:.2g}}).",
    "{{n}} 枚では偶然の可能性もあります（p = {{p:.2g}}）。",
)
_CLEAN = worded(
    " Of 300 classes of clean networks on photographs, this rule named 1.",
    "目印のない写真のネットワークでは、この基準が挙げたのは 300 クラス中 1 クラスでした。",
)
"""benchmarks/results-cues.json"""
BLIND_SPOTS = worded(
    "Not seen are cues that are spread out (a colour cast, blur, noise), cues in all classes, and cues inside the "
    "object; nor cues that held-out images lack.",
    "広がった手がかり（色かぶり、ぼけ、ノイズ）、全クラスにある手がかり、対象の内側の手がかり、"
    "評価画像にない手がかりは見つかりません。",
)


@question("cue", needs=("labels",), forwards=cue_cost)
def cue(collected: Collected) -> tuple[Finding, ...]:
    """Returns a finding per class: what covering and pasting the place where its maps are strongest does."""
    held_out = {test.label: test for test in cue_tests(collected)}
    train = {} if collected.train is None or collected.train.labels is None else {
        test.label: test for test in cue_tests(collected.train)
    }  # fmt: skip
    findings = []
    for label, test in held_out.items():
        finding = cue_finding(collected, test)
        if (other := train.get(label)) is not None:
            finding = _with_training(finding, collected, other)
        findings.append(finding)
    return tuple(findings)


def cue_finding(collected: Collected, test: CueTest) -> Finding:
    """Returns what the test of one class says, with pictures where there is something to look at."""
    alpha, rule = collected.settings.alpha, collected.settings.cue
    severity, name = test.severity(alpha, rule), collected.classes[test.label]
    values = {
        "excess of the map": test.excess,
        "share of the map in the window": test.share,
        "paste": test.paste.mean,
        "paste, low": test.paste.low,
        "paste, high": test.paste.high,
        "paste of each image's own window": test.paste_own.mean,
        "least excess, medium": rule.medium,
        "least excess, high": rule.high,
        "least cover": rule.cover,
        "least paste": rule.paste,
    }
    sentence = _sentence(collected, test, severity)
    if severity in ("high", "medium", "low"):
        share, others = _like_text(collected, test)
        values |= {"windows like printed text": share, "the same in other classes": others}
        if share >= OFTEN:
            more = worded(
                " The window looks like printed text in {own:.0%} of these pictures ({others:.0%} in other classes).",
                "その部分は {own:.0%} の画像で印刷文字に似ています（他クラスでは {others:.0%}）。",
                own=share,
                others=others,
            )
            sentence = {lang: sentence[lang] + more[lang] for lang in more}
    return Finding(
        "cue",
        severity,
        name,
        sentence,
        _next_step(test, severity),
        _STATISTIC,
        test.cover.mean,
        test.cover.low,
        test.cover.high,
        math.nan if test.unknown else max(test.cover.p, test.paste.p),
        test.p,
        len(test.rows) or test.n,
        rule.cover,
        test.cost,
        _evidence(collected, test) if severity in ("high", "medium", "low") else (),
        values,
    )


def _sentence(collected: Collected, test: CueTest, severity: Severity) -> Text:
    """Returns what was seen, with its numbers."""
    name = collected.classes[test.label]
    if test.unknown:
        reason = _REASONS[test.unknown]
        return worded(
            "{name} was not tested: " + reason["en"].format(n=test.n) + ".",
            "{name} は検査していません。" + reason["ja"].format(n=test.n) + "。",
            name=name,
        )
    rule, unsure = collected.settings.cue, worded("", "")
    if test.p > collected.settings.alpha:
        unsure = _UNSURE if rule != RULE else {lang: _UNSURE[lang] + _CLEAN[lang] for lang in _UNSURE}
    place = place_at(*test.window.middle(collected.grid))
    numbers = {"name": name, "cover": test.cover.mean, "paste": test.paste.mean, "p": test.p, "excess": test.excess}
    places = {"en_place": place["en"], "ja_place": place["ja"]}
    if severity in ("high", "medium"):
        text = worded(
            "{name} rests on {en_place}. Covered, its probability falls by {cover:.2f}; pasted into other pictures, it "
            "rises by {paste:.2f}." + unsure["en"],
            "{name} は画像の{ja_place}に頼っています。そこを隠すと確率が {cover:.2f} 下がり、"
            "他の画像に貼ると {paste:.2f} 上がります。" + unsure["ja"],
            n=len(test.rows),
            **numbers,
            **places,
        )
    elif severity == "low":
        text = worded(
            "The maps of {name} gather at {en_place}, but its scores hardly depend on it: covered {cover:+.2f}, pasted "
            "{paste:+.2f}.",
            "{name} のマップは{ja_place}に集中していますが、確率はほとんど変わりません"
            "（隠すと {cover:+.2f}、貼ると {paste:+.2f}）。",
            **numbers,
            **places,
        )
    else:
        reach = max(rule.cover, test.cover.high - test.cover.low)
        text = worded(
            "{name}: no place stands out (excess {excess:.2f}; covered {cover:+.2f}, pasted {paste:+.2f}). A fall of "
            "about {reach:.2f} would be found.",
            "{name}: 目立つ場所はありません（超過 {excess:.2f}、隠すと {cover:+.2f}、貼ると {paste:+.2f}）。"
            "約 {reach:.2f} の低下なら見つかります。",
            reach=reach,
            **numbers,
        )
    if len(collected.present) >= LEAST_CLASSES:
        return text
    return {
        "en": text["en"] + f" The thresholds are untested for fewer than {LEAST_CLASSES} classes.",
        "ja": text["ja"] + f"{LEAST_CLASSES} クラス未満での閾値は検証されていません。",
    }


def _like_text(collected: Collected, test: CueTest) -> tuple[float, float]:
    """Returns the share of pictures whose window looks like printed text: of the class, and of as many others."""
    others = [i for i, label in enumerate(collected.true_labels.tolist()) if label != test.label]
    order = torch.randperm(len(others), generator=collected.generator(f"cue/text/{test.label}")).tolist()
    result = []
    for rows in (test.rows, [others[i] for i in order[: len(test.rows)]]):
        pictures = [collected.picture(row).convert("RGB") for row in rows]
        windows = [test.window.box(collected.grid, (picture.height, picture.width)) for picture in pictures]
        result.append(share_like_text(pictures, windows))
    return result[0], result[1]


def _next_step(test: CueTest, severity: Severity) -> Text:
    if test.unknown:
        return worded("Give more images of it.", "画像を増やしてください。")
    if severity in ("high", "medium"):
        return worded(
            "Look at the window at full size. A mark: crop or cover it in all classes, and train again. A part of the "
            "scene, such as a horizon: it may be right to use.",
            "その部分を原寸で見てください。目印なら全クラスで切り取るか隠して再学習してください。"
            "水平線など場面の一部なら、使って正しいこともあります。",
        )
    if severity == "low":
        return worded("Look at the mean map; nothing else.", "平均マップを見るだけで十分です。")
    return {lang: f"{NOTHING_TO_DO[lang]} {BLIND_SPOTS[lang]}".strip() for lang in NOTHING_TO_DO}


def _with_training(finding: Finding, collected: Collected, train: CueTest) -> Finding:
    """Adds the numbers of the training images, and where the two parts differ."""
    alpha = collected.settings.alpha
    values = {
        **finding.values,
        "training images, excess": train.excess,
        "training images, cover": train.cover.mean,
        "training images, paste": train.paste.mean,
        "training images, p": train.p,
    }
    finding = replace(finding, values=values, cost=finding.cost + train.cost)
    named = train.severity(alpha, collected.settings.cue) in ("high", "medium")
    if not named or finding.severity in ("high", "medium"):
        return finding
    more = worded(
        " On the training images it does rest on a place (cover {cover:.2f}, paste {paste:.2f}): do held-out images "
        "lack a mark?",
        "学習画像では場所に頼っています（隠すと {cover:.2f}、貼ると {paste:.2f}）。評価画像に目印がないのでしょうか。",
        cover=train.cover.mean,
        paste=train.paste.mean,
    )
    sentence = {lang: finding.sentence[lang] + more[lang] for lang in more}
    severity: Severity = "low" if finding.severity == "ok" else finding.severity
    return replace(finding, sentence=sentence, severity=severity)


def _evidence(collected: Collected, test: CueTest) -> tuple[Evidence, ...]:
    """Returns the mean map on the mean picture, the window of twelve images, and images before and after."""
    rows = list(test.rows)[:_SHOWN]
    grid = collected.grid
    images = collected.images(rows).float().cpu()
    mean = pictured(collected, images.mean(0, keepdim=True))[0]
    large = mean.resize((224, round(224 * mean.height / mean.width)), Image.Resampling.BICUBIC)
    box = test.window.box(grid, (large.height, large.width))
    mapped = overlay(large, on_grid(test.mean_map[None], grid)[0])
    windows = []
    for row in rows:
        picture = collected.picture(row).convert("RGB")
        x0, y0, x1, y1 = (int(v) for v in test.window.box(grid, (picture.height, picture.width)))
        windows.append(picture.crop((x0, y0, x1, y1)))
    pairs = [pictured(collected, torch.stack(pair)) for pair in test.shown]
    return (
        Evidence(
            beside([[framed(large, box), framed(mapped, box)]], 224),
            worded(
                "Mean picture and mean map of the class; the window.", "クラスの平均画像と平均マップ。枠が検査部分。"
            ),
        ),
        Evidence(
            beside([windows[start : start + 6] for start in range(0, len(windows), 6)]),
            worded("The window in images of the class.", "クラスの画像のその部分。"),
        ),
        Evidence(
            beside([[pair[0] for pair in pairs], [pair[1] for pair in pairs]]),
            worded(
                "Images, and with the window of another class.",
                "元の画像（上）と、別クラスの同じ部分で隠した画像（下）。",
            ),
        ),
    )
