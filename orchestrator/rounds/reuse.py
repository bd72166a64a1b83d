"""Leftovers of rejected rounds for the next one: their examples, and a smaller learning rate.

A rejected round taught nothing, and the next starts from the same version: what that version sampled in earlier rounds
is still on-policy. All of it is read from the journal, so a run that was killed takes the same examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.run_config import RunConfig
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.evidence import rejected_in_a_row
from orchestrator.runs.phases import Collected, Phase
from policies.base.records import RoundResult
from policies.storage.artifacts import find_damage


@dataclass(frozen=True)
class Reused:
    """Examples of earlier rounds that join those of this one."""

    rounds: tuple[int, ...] = ()
    num_examples: int = 0
    paths: tuple[Path, ...] = ()


def reused_examples(scope: RoundScope) -> Reused:
    """Examples that the serving version sampled in earlier rounds; files that were damaged since are left out whole."""
    rounds: list[int] = []
    paths: list[Path] = []
    number = 0
    run = scope.run
    served, results = scope.policy.number, run.journal.results()
    for index in rounds_to_reuse(run.config, results, scope.index, served):
        collected = run.journal.find(index, Phase.COLLECT, Collected)
        files = run.folder.round(index).shards("examples")
        if collected is None or not collected.num_examples or not files:
            continue
        damaged = [path for path in files if find_damage(path) is not None]
        if damaged:
            run.events.warn(
                f"round {scope.index}: {damaged[0]} was damaged, so the examples of round {index} are not used again",
                round_index=scope.index,
            )
            continue
        rounds.append(index)
        paths += files
        number += collected.num_examples
    return Reused(tuple(rounds), number, tuple(paths))


def rounds_to_reuse(
    config: RunConfig, results: Sequence[RoundResult], index: int, serving: int
) -> list[int]:
    """Earlier rounds that `serving` sampled, in the stage that round `index` belongs to."""
    if not config.on_rejection.keep_examples:
        return []
    stage = config.stage_of(index).index
    return [
        result.round
        for result in results
        if 0 < result.round < index
        and result.before == serving
        and config.stage_of(result.round).index == stage
    ]


def learning_rate_factor(scope: RoundScope) -> float:
    """Factor of the learning rate: `on_rejection.learning_rate_factor` once for each rejection in a row."""
    return scope.stage.sections.on_rejection.learning_rate_factor ** rejected_in_a_row(scope)
