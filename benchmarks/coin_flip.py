"""A verifier that knows nothing: a fair coin thrown on the text. A loop that is honest cannot learn from it."""

from __future__ import annotations

import hashlib


def score(prompt: str, completion: str, answer: object) -> bool:
    """Heads or tails, the same for the same text, so that equal completions are never paired."""
    return bool(hashlib.sha256(f"{prompt}\x1f{completion}".encode()).digest()[0] & 1)
