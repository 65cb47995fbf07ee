"""An analysis in sentences, in English and in Japanese: remarks on its numbers, and a paragraph for a paper."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from konkyo.errors import unknown
from konkyo.survey.form import FEW, LANGUAGES

if TYPE_CHECKING:
    from konkyo.survey.analysis import Analysis
    from konkyo.survey.counts import Counts
    from konkyo.survey.preference import Preference

_OFTEN = 0.2  # ties, and "cannot judge"
_RELIABLE = 0.667  # Krippendorff's (2004) lowest alpha for tentative conclusions
_CONSISTENT = 0.75
_SHOWN = 10  # names in a sentence


def _text(lang: str, en: str, ja: str, **values: Any) -> str:
    """Returns a sentence in a language, with its values. KonkyoError: another language."""
    if lang not in LANGUAGES:
        raise unknown("language", lang, LANGUAGES)
    return (en if lang == "en" else ja).format(**values)


def percent(value: float) -> str:
    """Returns a share in per cent: 45, 73.3; 0.032 and 99.997 near the ends; "-" of what is not known.

    Only 0 and 1 themselves are 0 and 100 per cent, up to 14 digits.
    """
    if not math.isfinite(value):
        return "-"
    rest = 100 * min(value, 1 - value)
    digits = 1 if rest >= 0.05 or rest < 1e-12 else 1 - math.floor(math.log10(rest))
    return f"{100 * value:.{digits}f}".rstrip("0").rstrip(".")


def _span(low: float, high: float, lang: str) -> str:
    """Returns an interval of shares in per cent."""
    if not math.isfinite(low):
        return _text(lang, "not known", "不明")
    return f"{percent(low)}–{percent(high)} %"


def p_value(p: float) -> str:
    """Returns a p-value behind "p", as in "= 0.118"; "not known" of what is not."""
    if not math.isfinite(p):
        return "= -"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _names(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")


# --- remarks ----------------------------------------------------------------------------------------------------------


def remarks(a: Analysis, lang: str) -> list[str]:
    """Returns the sentences that a reader of the numbers has to know."""
    lines = [*_of_size(a, lang), *_of_answers(a, lang), *_of_raters(a, lang), *_of_agreement(a, lang)]
    if a.strengths is not None and a.strengths.groups:
        lines.append(
            _text(
                lang,
                "No strengths by Bradley and Terry: no vote connects {groups} both ways. A method that never won, or "
                "never lost, has no finite strength; more votes may change that.",
                "Bradley-Terry の強さは推定できません：{groups} の間に双方向の票がありません。一度も勝たない"
                "（負けない）手法の強さは有限になりません。票を増やすと推定できることがあります。",
                groups=" | ".join(", ".join(group) for group in a.strengths.groups),
            )
        )
    return lines


def _of_size(a: Analysis, lang: str) -> list[str]:
    lines = []
    if not a.preferences:
        return [
            _text(
                lang,
                "There are no votes: every answer is that it cannot be judged.",
                "票がありません：すべての回答が「判断できない」です。",
            )
        ]
    if a.items < FEW:
        lines.append(
            _text(
                lang,
                "{items} items are few: below {few}, hardly any preference can be shown over items, however many "
                "raters there are.",
                "項目が {items} 件と少なく、{few} 件未満では評価者が何人いても項目についての差はほとんど示せません。",
                items=a.items,
                few=FEW,
            )
        )
    kept = [p for p in a.preferences if (p.raters, p.ties) == ("kept", "dropped") and math.isfinite(p.effective)]
    if kept:
        worth = [f"{p.votes} ({p.first}, {p.second}): {p.effective:.0f}" for p in kept]
        lines.append(
            _text(
                lang,
                "Votes are not independent. So many independent ones are worth as much: {worth}.",
                "票は互いに独立ではありません。相当する独立な票の数：{worth}。",
                worth="; ".join(worth),
            )
        )
    if a.raters - len(a.excluded) == 1:
        lines.append(
            _text(
                lang,
                "One rater: intervals speak of other items, and not of other raters.",
                "評価者は 1 人です。区間は他の項目についてのもので、他の評価者については何も言えません。",
            )
        )
    if a.items == 1:
        lines.append(
            _text(
                lang,
                "One item: intervals speak of other raters, and not of other items.",
                "項目は 1 件です。区間は他の評価者についてのもので、他の項目については何も言えません。",
            )
        )
    return lines


def _of_answers(a: Analysis, lang: str) -> list[str]:
    lines = []
    for p in a.preferences:
        if (p.raters, p.ties) != ("kept", "half"):
            continue
        if p.tied == 1:
            lines.append(
                _text(
                    lang,
                    "{first} and {second}: all votes are ties, so there is no preference to test.",
                    "{first} と {second}：すべての票が「差がない」なので、検定できる選好はありません。",
                    first=p.first,
                    second=p.second,
                )
            )
        elif p.tied > _OFTEN:
            lines.append(
                _text(
                    lang,
                    "{first} and {second}: {tied} % of the votes are ties. Read the rate with ties counted half, too.",
                    "{first} と {second}：票の {tied} % が「差がない」です。0.5 票として数えた割合も確認してください。",
                    first=p.first,
                    second=p.second,
                    tied=percent(p.tied),
                )
            )
    if a.cannot_judge > _OFTEN:
        lines.append(
            _text(
                lang,
                "{share} % of the answers are that it cannot be judged; the results speak of the rest.",
                "回答の {share} % が「判断できない」で、結果はそれ以外の回答についてのものです。",
                share=percent(a.cannot_judge),
            )
        )
    if a.sides.p < 0.05:
        lines.append(
            _text(
                lang,
                "Raters favour a side: {share} % of the choices are on the left (p {p}). Random sides keep the "
                "preference fair, but such votes carry less.",
                "評価者の選択に左右の偏りがあります：{share} % が左です（p {p}）。左右は無作為なので選好は偏りません"
                "が、票の情報は少なくなります。",
                share=percent(a.sides.share),
                p=p_value(a.sides.p),
            )
        )
    if a.repeats.n and a.repeats.share < _CONSISTENT:
        lines.append(
            _text(
                lang,
                "Raters repeat themselves in {share} % of {n} repeats only; with two answers, chance gives 50 %.",
                "繰り返し項目 {n} 件のうち同じ回答は {share} % だけです（2 択の偶然は 50 %）。",
                share=percent(a.repeats.share),
                n=a.repeats.n,
            )
        )
    return lines


def _of_raters(a: Analysis, lang: str) -> list[str]:
    lines = []
    if a.excluded:
        lines.append(
            _text(
                lang,
                'The rule "{rule}" leaves out {n} of {raters} raters: {names}. Results with all raters are beside it.',
                "除外規則「{rule}」により {raters} 人中 {n} 人を除きました：{names}。全員での結果も併記しています。",
                rule=a.rule,
                n=len(a.excluded),
                raters=len(a.quality),
                names=_names([f"{q.rater} ({q.excluded})" for q in a.excluded]),
            )
        )
    if not a.has_form:
        lines.append(
            _text(
                lang,
                "No form was given: repeats and attention items are not known, and every item counts as plain.",
                "フォームが指定されていないため、繰り返し項目と注意確認項目は区別できず、すべて通常の項目として数えます。",
            )
        )
    return lines


def _of_agreement(a: Analysis, lang: str) -> list[str]:
    low = [f"{row.first}, {row.second}: {row.alpha:.2f}" for row in a.agreement if row.alpha < _RELIABLE]
    if not low:
        return []
    line = _text(
        lang,
        "Raters hardly agree on single items (alpha below {least}: {low}). A preference over all items can be sure "
        "nevertheless; do not rest on single items.",
        "項目ごとの評価者の一致は低いです（α が {least} 未満：{low}）。全体の選好は確かでありえますが、個々の項目を"
        "根拠にしないでください。",
        low="; ".join(low),
        least=_RELIABLE,
    )
    return [line]


# --- a paragraph for a paper ------------------------------------------------------------------------------------------


def paragraph(a: Analysis, lang: str) -> str:
    """Returns a paragraph for a paper: who was asked, what was preferred, and how sure that is."""
    sentences = [_of_survey(a, lang)]
    if a.main is not None:
        sentences += _of_preference(a, a.main, lang)
    elif a.strengths is not None and a.strengths.methods:
        sentences.append(_of_strengths(a, lang))
    sentences += _of_checks(a, lang)
    return ("" if lang == "ja" else " ").join(sentence for sentence in sentences if sentence)


def _of_survey(a: Analysis, lang: str) -> str:
    blind = _text(
        lang,
        "; the methods were hidden, and order and sides were drawn at random for every rater",
        "。手法名は伏せ、順序と左右は評価者ごとに無作為とした",
    )
    return _text(
        lang,
        "{raters} raters compared maps of {methods} on {items} items{blind}.",
        "{raters} 人の評価者が {items} 件の項目について {methods} のマップを比較した{blind}。",
        raters=a.raters,
        items=a.items,
        methods=_text(lang, " and ", " と ").join(a.methods) if len(a.methods) == 2 else ", ".join(a.methods),
        blind=blind if a.has_form else "",
    )


def _of_preference(a: Analysis, main: Preference, lang: str) -> list[str]:
    first, second = a.methods
    half, everyone = a.preference(first, second, ties="half"), a.preference(first, second, raters="all")
    lines = [_of_rate(main, lang)] if math.isfinite(main.rate) else []
    lines.append(_of_sign_test(main, lang))
    if half is not None and 0 < half.tied < 1:
        lines.append(
            _text(
                lang,
                "{tied} % of the votes were ties; with ties counted half, the rate is {rate} % ({span}).",
                "票の {tied} % は「差がない」であり、これを 0.5 票として数えると {rate} %（{span}）である。",
                tied=percent(half.tied),
                rate=percent(half.rate),
                span=_span(half.low, half.high, lang),
            )
        )
    if a.excluded and everyone is not None:
        lines.append(
            _text(
                lang,
                'These numbers leave out {n} of {total} raters by the rule "{rule}"; with all raters, the rate is '
                "{rate} % ({span}).",
                "以上は除外規則「{rule}」により {total} 人中 {n} 人を除いた値であり、全員では "
                "{rate} %（{span}）である。",
                n=len(a.excluded),
                total=len(a.quality),
                rule=a.rule,
                rate=percent(everyone.rate),
                span=_span(everyone.low, everyone.high, lang),
            )
        )
    return lines


def _of_rate(main: Preference, lang: str) -> str:
    resampled = _span(main.bootstrap_low, main.bootstrap_high, lang)
    bootstrap = _text(lang, "; by a two-way bootstrap {span}", "；二元ブートストラップでは {span}", span=resampled)
    return _text(
        lang,
        "{first} received {rate} % of {votes} votes (95 % interval {span}, p {p}, raters and items drawn at random"
        "{bootstrap}).",
        "{first} への票は {votes} 票中 {rate} % であった（95 % 区間 {span}、p {p}、評価者と項目を無作為とみなす"
        "{bootstrap}）。",
        first=main.first,
        rate=percent(main.rate),
        votes=main.votes,
        span=_span(main.low, main.high, lang),
        p=p_value(main.p),
        bootstrap=bootstrap if math.isfinite(main.bootstrap_low) else "",
    )


def _of_sign_test(main: Preference, lang: str) -> str:
    test = main.items
    if not test.wins + test.losses:
        return _text(lang, "No item had a majority.", "多数票を得た項目はなかった。")
    return _text(
        lang,
        "It won {wins} of {n} items with a majority, {draws} had none (exact sign test, two-sided, p {p}; 95 % "
        "Clopper–Pearson interval {span}).",
        "多数票を得た項目は {n} 件中 {wins} 件、同数は {draws} 件であった（正確な符号検定、両側、p {p}；95 % "
        "Clopper–Pearson 区間 {span}）。",
        wins=test.wins,
        n=test.wins + test.losses,
        draws=test.draws,
        p=p_value(test.p),
        span=_span(test.low, test.high, lang),
    )


def _of_strengths(a: Analysis, lang: str) -> str:
    assert a.strengths is not None  # the caller has looked
    strengths = "; ".join(f"{s.method} {s.value:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in a.strengths.methods)
    differing = [
        f"{p.first} {'>' if p.probability > 0.5 else '<'} {p.second} (p {p_value(p.adjusted)})"
        for p in a.strengths.pairs
        if p.adjusted < 0.05
    ]
    return _text(
        lang,
        "Strengths by Bradley and Terry with Davidson's ties (logarithms of worths, mean 0, 95 % intervals with raters "
        "and items drawn at random) are {strengths}; pairs that differ (Holm): {differing}.",
        "Bradley-Terry モデル（引き分けは Davidson）による強さ（対数、平均 0、評価者と項目を無作為とみなす 95 % 区間）"
        "は {strengths}、有意に異なる組（Holm 補正）は {differing} である。",
        strengths=strengths,
        differing="; ".join(differing) or _text(lang, "none", "なし"),
    )


def _of_checks(a: Analysis, lang: str) -> list[str]:
    lines = [_of_pairs(a, lang)] if a.agreement else []
    if math.isfinite(a.sides.p):
        lines.append(
            _text(
                lang,
                "The left side was chosen in {share} % of {n} choices (p {p}).",
                "左側が選ばれた割合は {n} 回中 {share} % であった（p {p}）。",
                share=percent(a.sides.share),
                n=a.sides.left + a.sides.right,
                p=p_value(a.sides.p),
            )
        )
    if a.repeats.n:
        lines.append(
            _text(
                lang,
                "Raters answered {same} of {n} repeated items as before.",
                "繰り返し項目 {n} 件のうち {same} 件が前回と同じ回答であった。",
                same=a.repeats.same,
                n=a.repeats.n,
            )
        )
    if a.cannot_judge:
        lines.append(
            _text(
                lang,
                '{share} % of the answers were "cannot judge".',
                "回答の {share} % は「判断できない」であった。",
                share=percent(a.cannot_judge),
            )
        )
    return lines


def _of_pairs(a: Analysis, lang: str) -> str:
    """Returns the agreement: of two methods its numbers, of more their range over pairs."""
    kappas, alphas = ([getattr(row, name) for row in a.agreement] for name in ("kappa", "alpha"))
    known = [[f"{value:.2f}" for value in (min(v), max(v))] for v in (kappas, alphas) if not any(map(math.isnan, v))]
    if len(known) < 2:
        return ""
    shown = [low if low == high else _text(lang, "{a} to {b}", "{a}～{b}", a=low, b=high) for low, high in known]
    return _text(
        lang,
        "Agreement of raters on items{pairs}: Fleiss' κ = {kappa}, Krippendorff's α = {alpha}.",
        "項目についての評価者の一致度{pairs}は Fleiss の κ = {kappa}、Krippendorff の α = {alpha} である。",
        pairs=_text(lang, ", by pairs of methods", "（手法の組ごと）") if len(a.agreement) > 1 else "",
        kappa=shown[0],
        alpha=shown[1],
    )


# --- counts of others -------------------------------------------------------------------------------------------------


def of_counts(c: Counts, lang: str) -> list[str]:
    """Returns what a count says, and what it could have shown."""
    n = c.test.wins + c.test.losses
    lines = [_of_test(c, n, lang), _of_need(c, n, lang)]
    lines += [_of_power(rate, n, power, needed, lang) for rate, power, needed in c.power]
    return lines + [_of_item(raters, n, least, lang) for raters, least in c.of_item]


def _of_test(c: Counts, n: int, lang: str) -> str:
    significant = _text(lang, "significant", "有意である")
    return _text(
        lang,
        "{wins} of {n} items: {share} %, 95 % interval {low:.0%}–{high:.0%} (Clopper–Pearson; Wilson {w_low:.0%}–"
        "{w_high:.0%}), exact sign test p {p} two-sided: {verdict}.",
        "{n} 件中 {wins} 件：{share} %、95 % 区間 {low:.0%}–{high:.0%}（Clopper–Pearson；Wilson では {w_low:.0%}–"
        "{w_high:.0%}）、正確な符号検定（両側）p {p}：{verdict}。",
        wins=c.test.wins,
        n=n,
        share=percent(c.test.share),
        low=c.test.low,
        high=c.test.high,
        w_low=c.test.wilson_low,
        w_high=c.test.wilson_high,
        p=p_value(c.test.p),
        verdict=significant if c.test.p < 0.05 else _text(lang, "not significant", "有意ではない"),
    )


def _of_need(c: Counts, n: int, lang: str) -> str:
    """Returns how many won items would be enough."""
    return _text(
        lang,
        "With {n} items, p < 0.05 needs {needed}.",
        "{n} 件で p < 0.05 となるには {needed}必要である。",
        n=n,
        needed=_text(lang, "more items: all of them would not do", "項目を増やすことが（全件でも不足）")
        if c.needed is None
        else _text(lang, "{k} won items or more", "{k} 件以上が", k=c.needed),
    )


def _of_power(rate: float, n: int, power: float, needed: int | None, lang: str) -> str:
    """Returns how probably a method that wins items at a rate shows it."""
    return _text(
        lang,
        "If a method wins an item with probability {rate:g}, {n} items show it with probability {power:.0%}; {needed}.",
        "項目で勝つ確率が {rate:g} なら、{n} 件でそれが示される確率は {power:.0%} であり、{needed}。",
        rate=rate,
        n=n,
        power=power,
        needed=_text(lang, "no practical number gives 80 %", "80 % には現実的な件数では足りない")
        if needed is None
        else _text(lang, "80 % needs {k} items", "80 % には {k} 件必要である", k=needed),
    )


def _of_item(raters: int, n: int, least: int | None, lang: str) -> str:
    """Returns what the votes on one item can show, and that those on all items are not independent."""
    if least is None:
        needed = _text(
            lang,
            "One item with {raters} raters cannot reach p < 0.05, not even if all of them agree.",
            "1 項目では評価者 {raters} 人の全員が一致しても p < 0.05 にはならない。",
            raters=raters,
        )
    else:
        needed = _text(
            lang,
            "One item with {raters} raters needs {least} equal votes or more.",
            "1 項目では評価者 {raters} 人中 {least} 票以上の一致が必要である。",
            raters=raters,
            least=least,
        )
    return _text(
        lang,
        "{needed} {raters} raters on {n} items give {votes} votes, but these are not independent: do not test them as "
        "{votes} coins.",
        "{needed}{raters} 人 × {n} 件で {votes} 票に"
        "なるが、互いに独立ではないので {votes} 回の硬貨投げとして検定してはならない。",
        raters=raters,
        needed=needed,
        n=n,
        votes=raters * n,
    )
