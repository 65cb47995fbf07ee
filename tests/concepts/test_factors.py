"""The factorisation: what has an exact one is rebuilt, and another library finds no better one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from konkyo.concepts.factors import coefficients_of, nonnegative_factors
from konkyo.errors import KonkyoError


def planted(places: int, channels: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse non-negative factors: every concept has places and channels of its own, so that they are the only ones."""
    coefficients = torch.rand(places, rank) * (torch.rand(places, rank) < 0.4)
    directions = torch.rand(rank, channels) * (torch.rand(rank, channels) < 0.4)
    coefficients[:rank], directions[:, :rank] = torch.eye(rank), torch.eye(rank)
    return coefficients, directions


def error(values: torch.Tensor, coefficients: torch.Tensor, directions: torch.Tensor) -> float:
    return float((values - coefficients @ directions).norm() / values.norm())


@pytest.mark.parametrize(("places", "channels"), [(60, 14), (14, 60)])
def test_exact_factors_are_found_again(places: int, channels: int) -> None:
    coefficients, directions = planted(places, channels, 4)
    values = coefficients @ directions
    one, two = nonnegative_factors(values, 4, sweeps=2000, tolerance=0)
    assert float(one.min()) >= 0
    assert float(two.min()) >= 0
    assert error(values, one, two) < 2e-3
    cosines = torch.nn.functional.normalize(two, dim=1) @ torch.nn.functional.normalize(directions, dim=1).mT
    assert float(cosines.amax(1).min()) > 0.99
    assert sorted(cosines.argmax(1).tolist()) == [0, 1, 2, 3]


def test_the_error_is_that_of_another_library() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    values = torch.rand(80, 12) ** 2
    one, two = nonnegative_factors(values, 5)
    theirs = decomposition.NMF(5, init="nndsvd", max_iter=1000, tol=1e-6).fit(values.numpy())
    assert error(values, one, two) < 1.03 * float(theirs.reconstruction_err_) / float(values.norm())


def test_a_rank_of_one_is_the_first_singular_pair() -> None:
    values = torch.rand(30, 7)
    one, two = nonnegative_factors(values, 1)
    left, lengths, right = torch.linalg.svd(values, full_matrices=False)
    torch.testing.assert_close(one @ two, lengths[0] * left[:, :1] @ right[:1], atol=1e-4, rtol=1e-3)


def test_coefficients_are_those_of_non_negative_least_squares() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    values, directions = torch.rand(9, 6), torch.rand(4, 6)
    ours = coefficients_of(values, directions)
    theirs = [optimize.nnls(directions.mT.double().numpy(), row.double().numpy())[0] for row in values]
    torch.testing.assert_close(ours.double(), torch.tensor(np.array(theirs)), atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize(
    ("values", "components", "message"),
    [
        (torch.rand(5, 3), 4, "from 1 to 3"),
        (torch.rand(5, 3), 0, "from 1 to 3"),
        (torch.rand(5, 3) - 1, 2, "non-negative"),
        (torch.full((5, 3), torch.nan), 2, "finite"),
    ],
)
def test_what_has_no_factors_is_an_error(values: torch.Tensor, components: int, message: str) -> None:
    with pytest.raises(KonkyoError, match=message):
        nonnegative_factors(values, components)
