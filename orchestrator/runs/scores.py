"""Held-out scores as people read them: each with its standard error, and the one to report at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.base.records import RoundResult


def pass_names(metrics: Mapping[str, float], prefix: str = "eval") -> list[str]:
    """`eval/pass@1`, `eval/pass@2`, ... that were measured, by k."""
    start = f"{prefix}/pass@"
    ks = [n.removeprefix(start) for n in metrics if n.startswith(start)]
    return [f"{start}{k}" for k in sorted(int(k) for k in ks if k.isdecimal())]


def with_error(metrics: Mapping[str, float], name: str) -> str:
    """A value with its standard error, where it has one: `0.391 +- 0.062`."""
    if name not in metrics:
        return "-"
    error = metrics.get(f"{name}_se")
    value = f"{metrics[name]:.4g}" if error is None else f"{metrics[name]:.3f}"
    return value if error is None else f"{value} +- {error:.3f}"


def final_line(results: Sequence[RoundResult]) -> str:
    """The score to report: measured at the end, where no decision looked; empty without one."""
    for name, what in (
        ("test", "prompts that no decision used"),
        ("final", "the held-out prompts, once more"),
    ):
        last = next((r for r in reversed(results) if f"{name}/pass@1" in r.metrics), None)
        if last is None or last.round == 0:
            continue
        start = results[0].metrics
        before = f" (at the start {with_error(start, f'{name}/pass@1')})" if name == "test" else ""
        return f"final pass@1 {with_error(last.metrics, f'{name}/pass@1')} on {what}{before}"
    return ""
