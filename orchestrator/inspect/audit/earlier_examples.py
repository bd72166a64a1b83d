"""Examples of earlier rounds in an audited run's updates: which rounds, how many, and the digests that they had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.config.run_config import RunConfig
from orchestrator.inspect.audit.check import Check
from orchestrator.rounds.update_view import plan_replay
from orchestrator.runs.journal import JournalEntry
from orchestrator.runs.phases import Collected, Phase, Trained
from orchestrator.runs.samplers import sampling_version
from policies.base.records import RoundResult


def check_reuse(config: RunConfig | None, entries: Sequence[JournalEntry], check: Check) -> None:
    """Examples that joined a later update: those that the journal and the config say, of the digests that they had."""
    before: dict[int, int] = {}
    served = [0]
    made: dict[int, int] = {}
    collected: dict[int, Collected] = {}
    for entry in entries:
        if entry.phase is Phase.COLLECT:
            sampler = sampling_version(config, served, entry.round) if config else served[-1]
            before[entry.round] = sampler
            collected[entry.round] = Collected.model_validate(entry.result)
            made[entry.round] = collected[entry.round].num_examples
        elif entry.phase is Phase.TRAIN:
            trained = Trained.model_validate(entry.result)
            others = [r for r in trained.reused if before.get(r) != served[-1] or r >= entry.round]
            check.expect(
                not others,
                f"round {entry.round} took examples of rounds {others}, which version {served[-1]} did not sample",
            )
            have = sum(made.get(r, 0) for r in trained.reused)
            check.expect(
                trained.num_reused == have,
                f"round {entry.round} took {trained.num_reused} examples of earlier rounds, they made {have}",
            )
            _check_replay(config, entry.round, trained, collected, check)
        elif entry.phase is Phase.ACCEPT:
            after = RoundResult.model_validate(entry.result).after
            served = [*served[: entry.round], after]


def _check_replay(
    config: RunConfig | None,
    index: int,
    trained: Trained,
    collected: Mapping[int, Collected],
    check: Check,
) -> None:
    """Compare what was replayed with what those rounds made, and with what the config asks for."""
    for part in trained.replayed:
        known = collected.get(part.round)
        check.expect(
            part.round < index
            and known is not None
            and part.digest == known.digests.get("examples", "")
            and part.num_examples <= part.num_available == known.num_examples,
            f"round {index} replayed {part.num_examples} of {part.num_available} examples of round {part.round} with "
            f"digest {part.digest[:12]}, which that round did not make before it",
        )
    if config is None or index not in collected:
        return
    fresh = collected[index].num_examples + trained.num_reused
    planned = plan_replay(config, index, trained.reused, fresh, collected.get)
    foreign = [part.round for part in trained.replayed if part not in planned]
    check.expect(
        not foreign,
        f"round {index} replayed examples of rounds {foreign} otherwise than training.replay says",
    )
    if trained.outcome is not None:
        left = [part.round for part in planned if part not in trained.replayed]
        if left:
            check.notes.append(f"round {index} left out damaged examples of rounds {left}")
