"""A tool that does what it is told, good or bad. It imports next to nothing: each process that it kills starts anew."""

from __future__ import annotations

import os
import sys
import time


def behave(how: str, number: int = 0) -> object:
    """Does what it is told.

    Args:
        how: what to do.
        number: is given back.
    """
    match how:
        case "hang":
            time.sleep(1000)
        case "flood":
            return "o" * 10**7
        case "raise":
            raise ValueError("boo")
        case "exit":
            sys.exit(0)
        case "abort":
            os.abort()
        case "os._exit":
            os._exit(7)
        case "bytes":
            return b"4737"
        case "object":
            return object()
    return f"{how} {number}"
