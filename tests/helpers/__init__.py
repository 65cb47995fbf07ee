"""What several files of tests use. When an assertion in here fails, pytest shows its values as it does in a test."""

from __future__ import annotations

import pkgutil

import pytest

pytest.register_assert_rewrite(*(module.name for module in pkgutil.iter_modules(__path__, f"{__name__}.")))
