"""Targets in words."""

from __future__ import annotations

import pytest

from konkyo import KonkyoError
from konkyo.targets.specs import SPECS, parse_target, with_settings


def test_a_class() -> None:
    assert parse_target("class:cat") == "cat"
    assert parse_target("class:3") == 3
    assert parse_target("class:a:b") == "a:b"


def test_unknown_kinds_name_those_on_offer() -> None:
    with pytest.raises(KonkyoError, match="class:NAME_OR_INDEX"):
        parse_target("nothing:3")
    assert all(item.form.removeprefix(kind)[:1] in ("", ":", "[") for kind, item in SPECS.items())


def test_settings_after_the_value() -> None:
    assert with_settings("road,within=all", "within") == ("road", {"within": "all"})
    with pytest.raises(KonkyoError, match="within=VALUE"):
        with_settings("road,inside=all", "within")
