"""Finds where in a user's code an exception arose: file, line and function, for error verdicts and for `pawl plan`."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path
from traceback import FrameSummary

_OURS = str(Path(__file__).resolve().parents[2] / "workers")
_LIBRARIES = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], "<frozen")


def raised_at(error: BaseException) -> str:
    """`mine.py, line 12, in score`: the innermost frame outside libraries, else the innermost outside Pawl; or empty.

    Example:
        >>> try:
        ...     compile("1 +", "mine.py", "eval")
        ... except SyntaxError as error:
        ...     raised_at(error)
        'mine.py, line 1'
    """
    first = error.__cause__ or error
    if isinstance(first, SyntaxError) and first.filename:
        return f"{Path(first.filename).name}, line {first.lineno}"
    # Of a recursion without end the last frames are enough.
    frames = [f for f in traceback.extract_tb(first.__traceback__) if not _is_ours(f)]
    foreign = [f for f in frames if not f.filename.startswith(_LIBRARIES)]
    frame = next(reversed(foreign or frames), None)
    return (
        ""
        if frame is None
        else f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    )


def _is_ours(frame: FrameSummary) -> bool:
    policies = sys.modules["policies"].__file__ or ""
    return frame.filename.startswith((_OURS, str(Path(policies).parent)))
