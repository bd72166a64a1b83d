"""Checksums inside what a run writes: an object or a line that says by its own `seal` whether it is what was written.

The seal of a file is over the values, and the file is also compared with the one way in which `write_json` writes
them: so a changed, lost or added byte is noticed wherever it stands. Lines of logs are `SealedLine`s. What has no seal
is from before there were any.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from policies.base.records import Record

SEAL = "seal"
_COMMENT = "<!-- sha256 of the text above: "


def seal_of(tree: Mapping[str, Any]) -> str:
    """sha256 of an object without its seal."""
    rest = {key: value for key, value in tree.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def with_seal(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same object with its seal.

    Example:
        >>> len(with_seal({"a": 1})["seal"])
        64
    """
    return {**tree, SEAL: seal_of(tree)}


def read_sealed(data: bytes) -> dict[str, Any]:
    """The object in a file, compared with its seal where it has one.

    Raises:
        ValueError: it is no JSON object, or changed since it was written; the message says which.
    """
    try:
        tree = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}")
    if not tree.get(SEAL):
        return tree
    if tree[SEAL] != seal_of(tree) or not is_as_written(data):
        raise ValueError("its seal is broken: it changed since it was written")
    return tree


def is_as_written(data: bytes) -> bool:
    """Tell whether JSON stands as `policies.storage.files.write_json` writes it: no other spaces, no lost line end."""
    text = json.dumps(json.loads(data), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return data == text.encode(errors="surrogatepass")


class SealedLine(Record):
    """A line of a log with a checksum of its own."""

    seal: str = ""
    """sha256 of the rest of the line; empty: by an older Pawl."""

    def sealed(self) -> Self:
        """The same line with its seal."""
        text = self.model_dump_json(exclude={SEAL})
        return self.model_copy(update={SEAL: hashlib.sha256(text.encode()).hexdigest()})

    def is_as_sealed(self) -> bool:
        """Tell whether the line is what was written, as far as its seal tells."""
        return self.seal in ("", self.sealed().seal)


def with_last_line(text: str, owner: str) -> str:
    """A page or Markdown text with a comment at its end: the sha256 of what is before it, and of whose it is."""
    text = text if text.endswith("\n") else text + "\n"
    return f"{text}{_COMMENT}{hashlib.sha256((owner + text).encode()).hexdigest()} -->\n"


def is_text_whole(data: bytes, owner: str) -> bool:
    """Tell whether a text is as `with_last_line` made it."""
    text, _, rest = data.rpartition(_COMMENT.encode())
    return rest == f"{hashlib.sha256(owner.encode() + text).hexdigest()} -->\n".encode()
