"""What tests say of the demands that they show to be met, and the demands without a test."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

NOT_YET: dict[int, tuple[str, str]] = {}
"""Demands without a test: (the demand, what konkyo has in its place)."""


def described(function: Any, marker: pytest.Mark) -> dict[str, Any]:
    """What a marked test says of its demand: number, and where it is documented demand, answer and what is missing."""
    demand, _, answer = (inspect.getdoc(function) or "").partition("\n")
    found = {"number": marker.args[0], "demand": demand.rstrip("."), "answer": " ".join(answer.split())}
    return found | {"missing": marker.kwargs.get("missing")} if demand else {"number": marker.args[0]}
