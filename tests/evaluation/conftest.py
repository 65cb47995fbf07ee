"""What several files here use."""

from __future__ import annotations

import pytest

import konkyo
from helpers.evaluation_inputs import colours


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    """Its classes are colours."""
    return colours()
