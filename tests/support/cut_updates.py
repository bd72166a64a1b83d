"""Cutting an update off at a step, as a death would, without ending the process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from workers.training.step_log import StepLog


class CutOffError(BaseException):
    """The end of the process, as far as the update can tell."""


@contextmanager
def cut_at(step: int) -> Iterator[None]:
    """Ends the update when it records a step, before the step is logged."""
    record = StepLog.record

    def cut(log: StepLog, values: Mapping[str, float]) -> None:
        if len(log.steps) + 1 == step:
            raise CutOffError
        record(log, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepLog, "record", cut)
        yield
