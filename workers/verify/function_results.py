"""Results of users' functions, read strictly: a score, an abstention, numbers beside it; anything else is refused."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.base.errors import VerificationError, explain
from policies.base.records import Verdict

MAX_METRICS = 20
"""Numbers beside the score that are kept of one result."""
MAX_NOTE_CHARACTERS = 300
_SCORE_KEYS = ("score", "reward")
_SCORES_KEYS = ("rewards", "scores")


class ResultError(VerificationError):
    """The function returned what it must not."""


@dataclass(frozen=True)
class Said:
    """One result. Example: `Said(score=0.5, metrics={"acc": 1.0}, note="pred: 56")`; no score is no opinion."""

    score: float | None = None
    """In the function's own range."""
    verdict: Verdict | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass
class ResultReader:
    """Reads results against the range that the function is said to have, and remembers how far they reach."""

    score_range: tuple[float, float]
    where: str
    tuples: bool = False
    """The first item of a tuple is the score, as verl takes it."""
    lowest: float = math.inf
    highest: float = -math.inf
    """The smallest and the largest finite number so far, in the range or not."""

    @property
    def range_that_holds(self) -> tuple[int, int] | None:
        """Whole numbers around all that was returned and around [0, 1]; None where all was in `score_range`."""
        low, high = self.score_range
        if low <= self.lowest and self.highest <= high:
            return None
        return min(0, math.floor(self.lowest)), max(1, math.ceil(self.highest))

    def one(self, result: Any) -> Said:
        """Read what was returned for one attempt.

        Raises:
            ResultError: it is none of the allowed things.
        """
        metrics: dict[str, float] = {}
        note = ""
        if isinstance(result, Mapping):
            result, metrics, note = self._from_dict(result)
        elif self.tuples and isinstance(result, (tuple, list)) and result:
            result = result[0]
        if result is None:
            return Said(metrics=metrics, note=note)
        if isinstance(result, Verdict):
            return Said(verdict=result)
        return Said(self._number(result), None, metrics, note)

    def many(self, result: Any, count: int) -> list[Said | ResultError]:
        """Read what was returned for all attempts of a call; a bad item is an error of that item alone.

        Raises:
            ResultError: it is no list with one item for each attempt.
        """
        wanted = f"a list with one number (or None) per completion, here {count}"
        extra: Mapping[str, Any] = {}
        if isinstance(result, Mapping):
            key = next((k for k in _SCORES_KEYS if k in result), None)
            if key is None:
                raise self.refused(
                    f"{wanted}, or a dict with the key 'rewards'", sorted(map(str, result))
                )
            extra, result = result, result[key]
        items = self._as_list(result, wanted)
        if len(items) != count:
            raise self.refused(wanted, f"{len(items)} items")
        logs = extra.get("extra_logs") if isinstance(extra.get("extra_logs"), Mapping) else {}
        shared = numbers_in(logs or {})
        return [self._item(item, shared if index == 0 else {}) for index, item in enumerate(items)]

    def _item(self, item: Any, shared: Mapping[str, float]) -> Said | ResultError:
        try:
            said = self.one(item)
        except ResultError as error:
            return error
        return Said(said.score, said.verdict, {**said.metrics, **shared}, said.note)

    def _as_list(self, result: Any, wanted: str) -> list[Any]:
        if hasattr(result, "tolist"):
            result = result.tolist()
        if isinstance(result, (str, bytes)) or not isinstance(result, Iterable):
            raise self.refused(wanted, result)
        return list(result)

    def _from_dict(self, result: Mapping[Any, Any]) -> tuple[Any, dict[str, float], str]:
        key = next((k for k in _SCORE_KEYS if k in result), None)
        if key is None:
            raise self.refused("a dict with the key 'score'", sorted(map(str, result)))
        others = {k: v for k, v in result.items() if k != key}
        texts = [f"{k}: {v}" for k, v in others.items() if isinstance(v, str)]
        return result[key], numbers_in(others), "; ".join(texts)[:MAX_NOTE_CHARACTERS]

    def _number(self, result: Any) -> float:
        if not isinstance(result, (str, bytes)) and hasattr(result, "item"):
            try:
                result = result.item()  # numpy and torch scalars
            except (ValueError, RuntimeError) as error:
                raise self.refused(self._wanted, result) from error
        low, high = self.score_range
        if isinstance(result, bool):  # of a function of raw scores a number as any other
            return float(result) if -low == high else (high if result else low)
        if callable(result):
            raise self.refused(
                f"{self._wanted}; it makes a function: give `factory_arguments` with what it is called with",
                result,
            )
        if not isinstance(result, numbers.Real):
            raise self.refused(self._wanted, result)
        value = float(result)
        if math.isfinite(value):
            self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)
        if not math.isfinite(value) or not low <= value <= high:
            raise self.refused(self._wanted, value)
        return value

    @property
    def _wanted(self) -> str:
        low, high = self.score_range
        return f"bool, a number in [{low:g}, {high:g}], a Verdict or None"

    def refused(self, wanted: str, value: Any) -> ResultError:
        """The error about a result that is not what is wanted."""
        shown = (
            value if isinstance(value, (float, int)) else f"{type(value).__name__} {value!r}"[:120]
        )
        return ResultError(
            explain(
                f"the function must return {wanted}",
                value=shown,
                where=self.where,
                fix="return such a value; for another range set verifiers[...].score_range: [low, high]",
            )
        )


def numbers_in(values: Mapping[Any, Any]) -> dict[str, float]:
    """The finite numbers among `values`, by name; a list or tensor of numbers counts as its mean."""
    found: dict[str, float] = {}
    for name, value in values.items():
        number = _mean(value)
        if number is not None and len(found) < MAX_METRICS:
            found[str(name)[:60]] = number
    return found


def _mean(value: Any) -> float | None:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and value:
        each = [_mean(item) for item in value]
        known = [number for number in each if number is not None]
        value = math.fsum(known) / len(known) if len(known) == len(each) else None
    if isinstance(value, (bool, numbers.Real)) and math.isfinite(value):
        return float(value)
    return None


class Logged:
    """Values that one call hands to `log_extra` and `log_metric`."""

    def __init__(self) -> None:
        self._metrics: dict[str, list[float]] = {}
        self._columns: dict[str, list[Any]] = {}

    @property
    def tools(self) -> dict[str, Any]:
        """The two functions, by the names of their parameters."""
        return {"log_extra": self._log_extra, "log_metric": self._log_metric}

    def _log_extra(self, column: str, values: Sequence[Any]) -> None:
        self._columns.setdefault(str(column), []).extend(values)

    def _log_metric(self, name: str, value: float) -> None:
        self._metrics.setdefault(str(name), []).append(float(value))

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over the call."""
        return numbers_in(self._metrics)

    def note(self, index: int, count: int) -> str:
        """The extra columns of one attempt, as a line."""
        said = [f"{c}: {v[index]}" for c, v in self._columns.items() if len(v) == count]
        return "; ".join(said)[:MAX_NOTE_CHARACTERS]
