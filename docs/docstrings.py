"""Makes the examples in docstrings blocks of code: an extension of griffe, which reads them for the reference."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
"""From a prompt to the next empty line."""


class Examples(Extension):
    """Fences every example of a docstring; in Markdown its prompts would be quotations in quotations."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rewrites the docstring of an object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(lambda example: f"```pycon\n{example[0]}\n```", obj.docstring.value)
