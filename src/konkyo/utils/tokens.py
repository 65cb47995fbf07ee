"""Tokens: what a tokenizer of transformers makes of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from konkyo.errors import KonkyoError


def require_known(tokenizer: Any, texts: Sequence[str]) -> None:
    """Raises KonkyoError where a tokenizer puts its token for the unknown in the place of a part of a text.

    Texts of such tokens alone would be one and the same to the network. Tokenizers of bytes know all; the token that
    they name ends texts, and stands in none.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    others = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id"))
    if unknown is None or unknown in others:
        return
    for text in texts:
        if unknown in tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise KonkyoError(f"the network's tokenizer has no token for a part of {text!r}: it cannot be told apart")
