"""Properties of pictures: AUROC against scikit-like counting of pairs, a brighter class, and permuted labels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from konkyo.data.samples import Sample, Samples
from konkyo.evaluation.diagnose.properties import Properties, association, picture_properties, property_findings


def drawn(count: int, seed: int, low: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(low, 200 + low // 4, (12, 16, 3), np.uint8)) for _ in range(count)]


def data(pictures: list[Image.Image], names: list[str] | None = None) -> Samples:
    known = tuple(names or [f"{i}.png" for i in range(len(pictures))])
    return Samples(known, lambda i: Sample(known[i], pictures[i]))


def test_the_auroc_is_the_share_of_pairs_with_ties_counted_half() -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 6, (30, 3)).astype(float)
    labels = generator.integers(0, 3, 30)
    result = association(values, labels, 3, resamples=10)
    for c in range(3):
        for m in range(3):
            of, others = values[labels == c, m], values[labels != c, m]
            pairs = [(a > b) + 0.5 * (a == b) for a in of for b in others]
            assert result.auroc[c, m] == pytest.approx(np.mean(pairs))


def test_the_spread_under_permutation_is_that_of_the_mann_whitney_test() -> None:
    from scipy.stats import mannwhitneyu

    generator = np.random.default_rng(1)
    values, labels = generator.integers(0, 9, (40, 1)).astype(float), np.repeat([0, 1], [15, 25])
    values[:15] += 2
    expected = mannwhitneyu(values[:15, 0], values[15:, 0], method="asymptotic", use_continuity=False).pvalue
    result = association(values, labels, 2, resamples=4000, seed=2)
    assert result.p[0, 0] == pytest.approx(expected, abs=0.012)


def test_the_least_auroc_that_would_be_named_is_the_one_whose_p_is_alpha() -> None:
    generator = np.random.default_rng(5)
    values, labels = generator.integers(0, 5, (30, 2)).astype(float), np.repeat([0, 1, 2], 10)
    result = association(values, labels, 3, resamples=400, seed=1)
    permuted = [association(values, generator.permutation(labels), 3, resamples=1).auroc for _ in range(800)]
    assert np.allclose(np.std(permuted, axis=0), result.spread, rtol=0.1)
    distance = np.abs(result.auroc - 0.5) / result.spread
    assert np.allclose((1 + (result.largest[:, None, None] >= distance - 1e-9).sum(0)) / 401, result.p_adjusted)


def test_permuted_labels_give_findings_at_most_at_the_stated_rate() -> None:
    generator = np.random.default_rng(4)
    base = generator.normal(size=(40, 7))
    labels = np.repeat(np.arange(4), 10)
    smallest = [
        association(base, generator.permutation(labels), 4, resamples=99, seed=run).p_adjusted.min()
        for run in range(200)
    ]
    assert 0.02 <= np.mean(np.array(smallest) <= 0.05) <= 0.09


def test_a_brighter_class_is_named_and_nothing_more() -> None:
    pictures = [*drawn(12, 1), *drawn(12, 2, low=120)]
    samples = data(pictures)
    labels = np.repeat([0, 1], 12)
    findings = property_findings(Properties.of(samples), labels, ("night", "day"), samples, resamples=300)
    brightness = [finding for finding in findings if "brightness" in finding.statistic]
    assert [finding.subject for finding in brightness] == ["day"]  # of two classes one says all
    assert all(finding.severity == "low" and finding.p_adjusted <= 0.01 for finding in findings)
    assert brightness[0].evidence[0].picture.width > 300
    assert not any("pixels" in finding.statistic or "file type" in finding.statistic for finding in findings)


def test_a_class_of_another_file_type_and_size_is_of_the_next_severity() -> None:
    pictures = [*drawn(10, 1), *(picture.resize((32, 24)) for picture in drawn(10, 2))]
    samples = data(pictures, [f"{i}.{'jpg' if i < 10 else 'png'}" for i in range(20)])
    findings = property_findings(Properties.of(samples), np.repeat([0, 1], 10), ("a", "b"), samples, resamples=300)
    medium = {finding.statistic for finding in findings if finding.severity == "medium"}
    assert {"AUROC of pixels for the class", "AUROC of file type .png for the class"} <= medium
    png = next(f for f in findings if f.subject == "b" and "png" in f.statistic)
    assert png.values == {"share in the class": 1.0, "share in the others": 0.0}
    assert "100% against 0%" in png.sentence["en"]


def test_without_a_difference_it_is_ok_and_says_what_would_have_been_found() -> None:
    samples = data(drawn(40, 3))
    labels = np.random.default_rng(0).integers(0, 2, 40)
    (finding,) = property_findings(Properties.of(samples), labels, ("a", "b"), samples, resamples=200)
    assert finding.severity == "ok"
    assert "would have been named" in finding.sentence["en"]


def test_few_images_are_unknown() -> None:
    samples = data(drawn(8, 3))
    (finding,) = property_findings(Properties.of(samples), np.arange(8) % 2, ("a", "b"), samples)
    assert finding.severity == "unknown"


def test_properties_are_what_their_names_say() -> None:
    red = Image.new("RGB", (30, 20), (255, 0, 0))
    brightness, contrast, saturation, sharpness, pixels, ratio = picture_properties(red)
    assert brightness == pytest.approx(0.299, abs=0.005)
    assert (contrast, saturation, sharpness, pixels, ratio) == pytest.approx((0, 1, 0, 600, 1.5))
    rough = drawn(1, 0)[0].resize((128, 96))
    assert picture_properties(rough)[3] > 1.2 * picture_properties(rough.filter(ImageFilter.GaussianBlur(6)))[3]
