"""Endings of turns and attempts."""

from __future__ import annotations

from enum import StrEnum


class StopReason(StrEnum):
    """The reason why a turn ended."""

    STOP = "stop"
    """The policy wrote a terminator or a stop string."""
    LENGTH = "length"
    """The token budget ran out: the terminator is missing."""
    OBSERVATION = "observation"
    """Not written by the policy."""
    ERROR = "error"
    """The engine broke the turn off: the trajectory is an error."""


class TrajectoryStatus(StrEnum):
    """The ending of an attempt."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    ERROR = "error"


class Ending(StrEnum):
    """The reason why an attempt ended."""

    ANSWERED = "answered"
    """The policy gave its last turn: no tool was called, or the strategy's last stage was reached."""
    ENVIRONMENT = "environment"
    """The environment said that the episode is over."""
    TURN_LIMIT = "turn_limit"
    TOKEN_LIMIT = "token_limit"  # nosec B105 # a state, not a password
    """A turn or the whole trajectory ran out of tokens."""
    FAILED = "failed"
    """Our side failed; the status is `error`."""
