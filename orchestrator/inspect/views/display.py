"""Shows a run while it goes on: live progress on a terminal, one plain line per phase elsewhere.

Both are observers of events; neither decides anything. Text that a model wrote passes `plain_text` first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from orchestrator.runs.events import Event, EventKind, Observer
from orchestrator.runs.judge_columns import judge_columns
from orchestrator.runs.scores import pass_names, with_error
from policies.base.plain_text import duration, number, one_line
from policies.base.records import RoundResult

_LAST_STAGES = frozenset({"prefer", "grade"})
"""The stages that finish a shard of collect and of evaluate."""
_PHASES = ("draw", "collect", "train", "publish", "sync", "evaluate", "accept")


def describe(event: Event) -> str | None:
    """The plain line of an event, or None when it has none."""
    detail = event.detail
    where = "" if event.round is None else f"round {event.round}  "
    if event.kind is EventKind.RUN_STARTED:
        return f"{'resumed' if detail.get('resumed') else 'started'}: {detail.get('rounds', '?')} rounds"
    if event.kind is EventKind.WORKERS_STARTING:
        return "starting workers"
    if event.kind is EventKind.WORKERS_READY:
        return f"workers ready after {duration(_float(detail.get('seconds')))}"
    if event.kind is EventKind.PHASE_FINISHED:
        facts = ", ".join(
            f"{k} {number(v)}" for k, v in detail.items() if k != "seconds" and _short(v)
        )
        took = duration(_float(detail.get("seconds")))
        return f"{where}{event.phase or '':<9} {took:>12}  {facts}".rstrip()
    if event.kind is EventKind.ROUND_FINISHED:
        return f"{where}{_round_line(detail)}"
    if event.kind is EventKind.WARNING:
        return f"warning: {where}{one_line(detail.get('message', ''), 400)}"
    if event.kind is EventKind.RUN_FAILED:
        return f"failed: {one_line(detail.get('error', ''))}: {one_line(detail.get('message', ''), 400)}"
    return {EventKind.RUN_FINISHED: "finished", EventKind.RUN_INTERRUPTED: "interrupted"}.get(
        event.kind
    )


def _round_line(detail: dict[str, Any]) -> str:
    result = detail.get("result", detail)
    result = result if isinstance(result, dict) else {}
    metrics = result.get("metrics") or {}
    scores = ", ".join(f"{n} {with_error(metrics, n)}" for n in pass_names(metrics))
    reason = one_line(result.get("reason") or "", 200)
    return "  ".join(
        part for part in (str(result.get("status", "finished")), scores, reason) if part
    )


def _short(value: object) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= 40)


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


class PlainLines:
    """Observer for logs and pipes: one line per event that has one, with the time of day, no control codes."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout

    def __call__(self, event: Event) -> None:
        line = describe(event)
        if line is not None:
            self._stream.write(f"{_clock(event.at)} {line}\n")
            self._stream.flush()


def _clock(at: str) -> str:
    try:
        return datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return at


class LiveProgress:
    """Observer for a terminal: a bar per running phase with shards or steps, tokens/s and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._unit, self._started, self._tokens = "", 0.0, 0

    def __call__(self, event: Event) -> None:
        if event.kind is EventKind.WORKERS_STARTING:
            self._begin("starting workers", None, "")
        elif event.kind is EventKind.PHASE_STARTED:
            shards = event.detail.get("shards")
            total = int(shards) if isinstance(shards, (int, float)) and shards else None
            self._begin(f"round {event.round}  {event.phase}", total, "shards")
        elif event.kind is EventKind.SHARD_STAGE_FINISHED:
            self._shard(event)
        elif event.kind is EventKind.TRAINING_STEP:
            self._step(event)
        else:
            self._end()
        line = describe(event)
        if line is not None and event.kind is not EventKind.WORKERS_STARTING:
            self._console.print(Text(f"{_clock(event.at)} {line}"))

    def stop(self) -> None:
        """Give the terminal back."""
        self._end()

    def _begin(self, what: str, total: int | None, unit: str) -> None:
        self._end()
        self._unit, self._started, self._tokens = unit, time.monotonic(), 0
        self._progress.start()
        self._task = self._progress.add_task(what, total=total, facts="")

    def _end(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._progress.stop()
            self._task = None

    def _shard(self, event: Event) -> None:
        if self._task is None:
            return
        tokens = event.detail.get("tokens")
        if event.detail.get("stage") == "rollout" and isinstance(tokens, (int, float)):
            self._tokens += int(tokens)
        self._progress.advance(self._task, 1 if event.detail.get("stage") in _LAST_STAGES else 0)
        self._show_facts()

    def _step(self, event: Event) -> None:
        if self._task is None:
            return
        step, steps = event.detail.get("step"), event.detail.get("steps")
        self._unit = "steps"
        self._progress.update(self._task, completed=_float(step), total=_float(steps) or None)
        self._show_facts()

    def _show_facts(self) -> None:
        assert self._task is not None
        task = self._progress.tasks[self._progress.task_ids.index(self._task)]
        elapsed = max(time.monotonic() - self._started, 1e-3)
        facts = [
            f"{int(task.completed)}/{'?' if task.total is None else int(task.total)} {self._unit}"
        ]
        if self._tokens:
            facts.append(f"{self._tokens / elapsed:.0f} tokens/s")
        if task.total and task.completed:
            left = elapsed / task.completed * (task.total - task.completed)
            facts.append(f"{duration(left)} left")
        self._progress.update(self._task, facts=", ".join(facts))


def observers_for(console: Console) -> list[Observer]:
    """The observer that fits where the output goes."""
    return [LiveProgress(console) if console.is_terminal else PlainLines(console.file)]


def rounds_table(results: Sequence[RoundResult], seconds: dict[int, dict[str, float]]) -> Table:
    """A run by round: status, version, held-out scores, length, examples, seconds by phase."""
    widest = max((_pass_k(r.metrics) for r in results), default=1)
    phases = [p for p in _PHASES if any(row.get(p, 0.0) >= 0.05 for row in seconds.values())]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("round", "status", "version"):
        table.add_column(heading)
    wanted = [("pass@1", "eval/pass@1")]
    wanted += [(f"pass@{widest}", f"eval/pass@{widest}")] if widest > 1 else []
    length = next(
        (n for r in results for n in r.metrics if n.startswith("eval/") and "length" in n), ""
    )
    if any(r.metrics.get("eval/truncated_share") for r in results):
        wanted += [("complete", "eval/pass@1_complete"), ("cut off", "eval/truncated_share")]
    wanted += [("tokens", length)] if length else []
    examples = next(
        (n for r in results for n in r.metrics if n in ("prefer/examples", "train/examples")), ""
    )
    wanted += [("examples", examples)] if examples else []
    wanted += judge_columns(results)
    for heading in [h for h, _ in wanted] + [f"{p} s" for p in phases]:
        table.add_column(one_line(heading), justify="right")
    for result in results:
        cells = [str(result.round), result.status.value, str(result.after)]
        cells += [with_error(result.metrics, n) for _, n in wanted]
        spent = seconds.get(result.round, {})
        cells += [f"{spent[p]:.1f}" if p in spent else "-" for p in phases]
        table.add_row(*cells)
    return table


def _pass_k(metrics: dict[str, float]) -> int:
    return max((int(n.rpartition("@")[2]) for n in pass_names(metrics)), default=1)
