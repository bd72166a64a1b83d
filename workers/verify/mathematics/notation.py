"""One way to write mathematics out of many: Unicode signs, markdown, LaTeX spacing and wrappers are taken away."""

from __future__ import annotations

import re
import unicodedata

from policies.base.attempt_answer import closing_brace

_SIGNS = {
    "\u2212": "-",
    "\u2010": "-",
    "\u2011": "-",
    "\u00d7": r"\times ",
    "\u22c5": r"\cdot ",
    "\u00b7": r"\cdot ",
    "\u00f7": "/",
    "\u2215": "/",
    "\u2044": "/",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u2248": r"\approx ",
    "\u00b1": r"\pm ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u3002": ". ",
    "\u3001": ", ",
    "\u00b0": r"^\circ ",
    "\u00a0": " ",
    "\u202f": " ",
    "\u2009": " ",
}
_SUPERSCRIPTS = dict(
    zip(
        "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b",
        "0123456789-",
        strict=True,
    )
)
_SUBSCRIPTS = dict(zip(map(chr, range(0x2080, 0x208A)), "0123456789", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_MIXED = re.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])")
_ROOT = re.compile(r"\u221a\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_DASH = re.compile(r"(?<![\w)])[\u2013\u2014](?=[\d.])")
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname\*?)\s*\{"
)
_SPACING = re.compile(
    r"\\(?:[,;:! ]|q?quad\b|displaystyle\b|left\b\.?|right\b\.?|limits\b|big[lr]?\b|Big[lr]?\b)|~"
)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?\b")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
_HALF_SHORT = re.compile(r"\\frac\s*(\d)\s*\{")
_LATE_SHORT = re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d)")
_EMPHASIS = re.compile(r"\*\*|(?<![A-Za-z0-9])__|__(?![A-Za-z0-9])|`|~~")
_MARGIN = " \t\n.,;:?\"'\u201c\u201d\u2018\u2019"


def plain_signs(text: str) -> str:
    """`text` in ASCII where Unicode has signs of its own for digits, operators, roots and powers."""
    text = _RAISED.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m.group()) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + "".join(_SUBSCRIPTS[c] for c in m.group()) + "}", text)
    text = _MIXED.sub(" ", text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{next(g for g in m.groups() if g is not None)}}}", text)
    text = _DASH.sub("-", text)
    text = "".join(_SIGNS.get(c, c) for c in text)
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/")
    return "".join(c if c.isascii() else _ascii_digit(c) for c in text)


def tidy(text: str) -> str:
    """An answer without what says nothing: delimiters, emphasis, LaTeX wrappers and spacing, outer punctuation."""
    text = plain_signs(text)
    text = text.replace(r"\$", " ").replace("$", " ").replace("{,}", ",").replace(r"\%", "%")
    for delimiter in (r"\(", r"\)", r"\[", r"\]"):
        text = text.replace(delimiter, " ")
    text = _EMPHASIS.sub("", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = _SPACING.sub(" ", text)
    text = _DEGREES.sub(" ", text)
    text = unwrapped(text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _HALF_SHORT.sub(r"\\frac{\1}{", text)
    text = _LATE_SHORT.sub(r"\1{\2}", text)
    text = re.sub(r"\\(le|ge)q(?:slant)?\b", r"\\\1", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"(?<![\w)}!])!+$", "", text.strip(_MARGIN))
    text = re.sub(r"^(?:=|:|\\approx)\s*", "", text)
    return text.strip(_MARGIN if not re.match(r"\.\d", text) else _MARGIN.replace(".", ""))


def unwrapped(text: str) -> str:
    r"""`text` with the content of `\text{...}` and its like in their place, blanks around it."""
    while (found := _WRAPPERS.search(text)) is not None:
        end = closing_brace(text, found.end() - 1)
        if end is None:
            return text
        text = f"{text[: found.start()]} {text[found.end() : end]} {text[end + 1 :]}"
    return text


def _ascii_digit(character: str) -> str:
    value = unicodedata.decimal(character, None)
    return character if value is None else str(value)
