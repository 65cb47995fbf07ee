"""Where things lie: the checkout, its documentation and examples, and data that lies beside it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS, DOCS, EXAMPLES = ROOT / "tests", ROOT / "docs", ROOT / "examples"
DATA = Path(os.environ.get("KONKYO_TEST_DATA", ROOT.parent / "shared" / "data"))
"""Photographs and trained networks, which are not in the checkout."""
