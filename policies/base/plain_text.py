"""Texts and numbers for people: foreign text without what can steer a terminal or a browser."""

from __future__ import annotations

import re

_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)


def clean_text(text: str) -> str:
    r"""Model text without what can steer a terminal or a browser: control, direction and invisible characters.

    Example:
        >>> clean_text("56\x1b[31m\x00 done\n")
        '56[31m done\n'
    """
    return _CONTROLS.sub("", text)


def plain_text(text: object) -> str:
    """Foreign text for a terminal: no control, colour or direction characters; line breaks kept."""
    return clean_text(str(text)).replace("\r", "")


def one_line(text: object, width: int = 100) -> str:
    """Foreign text on one line, cut to `width` characters."""
    flat = " ".join(plain_text(text).split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def duration(seconds: float) -> str:
    """Seconds for people: `8.3 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: object) -> str:
    """A metric for people."""
    if isinstance(value, float):
        return f"{int(value)}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return one_line(value)
