"""JSON as the standard has it, without NaN and Infinity."""

from __future__ import annotations

import json
from typing import Any


def strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
