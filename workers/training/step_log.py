"""The log of each optimizer step: a line in the update's log, and the means that become the round's metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.base.errors import DivergenceError, explain
from policies.storage.files import append_unsynced, remove_file
from workers.cluster.heartbeat import report_progress

_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "entropy": "train/entropy",
    "nll": "train/nll",
    "aux_loss": "train/router_aux_loss",
    "kl": "kl",
    "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected",
    "rewards/margins": "rewards/margins",
    "rewards/accuracies": "rewards/accuracies",
    "logps/chosen": "logps/chosen",
    "logps/rejected": "logps/rejected",
    "steps/kl": "steps/kl",
    "steps/logratios/chosen": "steps/logratios/chosen",
    "steps/logratios/rejected": "steps/logratios/rejected",
}
"""The trainer's names and ours; another name is kept as `train/<name>`, of rank 0 where several workers train."""
_OF_THE_TRAINER = frozenset({"epoch", "step", "total_flos", "train_loss"})
"""What the trainer logs that is no metric of a step, or the same again."""

AVERAGED = tuple(name for name in _NAMES if name not in ("loss", "learning_rate", "grad_norm"))
"""Values that each of several workers has of its own share of a batch only."""


class StepLog:
    """Collects the steps of one update. With `path` None (a worker that does not write) it only remembers them."""

    def __init__(self, path: Path | None, before: Sequence[Mapping[str, float]] = ()) -> None:
        self._path = path
        self.steps: list[dict[str, float]] = [
            _ordered({name: value for name, value in step.items() if name != "step"})
            for step in before
        ]
        """`before`: the steps that a checkpoint brought, which are logged again, once."""
        if path is not None:
            remove_file(path)  # left by an attempt that was killed
            for number, step in enumerate(self.steps, start=1):
                log_line(path, {"step": number, **step})

    def record(self, values: Mapping[str, float]) -> None:
        """Keep one step.

        Raises:
            DivergenceError: its loss or gradient norm is not finite.
        """
        step = {ours: float(values[theirs]) for theirs, ours in _NAMES.items() if theirs in values}
        step = _ordered(step | _other(values))
        for name in ("train/loss", "train/grad_norm"):
            self.require_finite(name, step.get(name, 0.0))
        self.steps.append(step)
        report_progress(steps=1)
        if self._path is not None:
            log_line(self._path, {"step": len(self.steps), **step})

    def require_finite(self, name: str, value: float) -> None:
        """Refuse a value of the step that is being made.

        Raises:
            DivergenceError: it is not finite; names the step.
        """
        if not math.isfinite(value):
            raise DivergenceError(
                explain(
                    f"{name} is not finite at step {len(self.steps) + 1}",
                    value=value,
                    where="training.learning_rate and training.loss",
                    fix="lower the learning rate, raise training.warmup_fraction, or set precision to fp32",
                )
            )

    def means(self) -> dict[str, float]:
        """Mean of each value over the steps that have it, and the first loss."""
        names = {name for step in self.steps for name in step}
        means = {name: _mean([s[name] for s in self.steps if name in s]) for name in sorted(names)}
        return {
            **means,
            "train/loss_first": self.steps[0]["train/loss"],
            "train/steps": float(len(self.steps)),
            "train/nonfinite_steps": 0.0,  # an update that has one is abandoned
        }

    def final_mean(self, name: str) -> float | None:
        """Mean of a value over the last quarter of the steps, or None when no step has it."""
        last = self.steps[-max(1, len(self.steps) // 4) :]
        values = [s[name] for s in last if name in s]
        return _mean(values) if values else None


def _ordered(step: Mapping[str, float]) -> dict[str, float]:
    """The values in one order, whether they come from the trainer or from a checkpoint."""
    known = [name for name in _NAMES.values() if name in step]
    return {name: step[name] for name in [*known, *sorted(step.keys() - set(known))]}


def _other(values: Mapping[str, object]) -> dict[str, float]:
    """Metrics that a trainer has besides those we know, so that none vanishes; clocks are told elsewhere."""
    return {
        name if "/" in name else f"train/{name}": float(value)
        for name, value in values.items()
        if name not in _NAMES
        and name not in _OF_THE_TRAINER
        and isinstance(value, (int, float))
        and math.isfinite(value)
        and not any(clock in name for clock in ("second", "runtime"))
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def log_line(path: Path, values: dict[str, Any]) -> None:
    """Append one step's values to the update's log.

    Raises:
        StorageError: the disk refused; nothing of the line is left.
    """
    append_unsynced(path, json.dumps(values).encode() + b"\n")
