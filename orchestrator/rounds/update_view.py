"""The view of the store that an update reads beside its own round: which examples of earlier rounds join it.

Two reasons bring them, and one mechanism. The serving version sampled them (rounds that were rejected since): they are
still on-policy and come whole. Or `training.replay` asks for older ones, up to a share. What is taken is a function of
the journal, the config and the examples' digests: a run that was killed takes the same, and `pawl verify` asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config.run_config import RunConfig
from orchestrator.rounds.collecting import digests
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.evidence import rejected_in_a_row
from orchestrator.runs.folder import RoundFolder
from orchestrator.runs.phases import Collected, Phase, Replayed
from orchestrator.runs.samplers import sampling_version
from policies.base.errors import ArtifactError
from policies.base.records import RoundResult
from policies.base.seeds import derive_rng
from policies.storage.artifacts import find_damage, read_marker

CollectedOf = Callable[[int], Collected | None]
"""What a round of the journal collected."""


@dataclass(frozen=True)
class UpdateView:
    """Examples of earlier rounds that join those of this one."""

    reused: tuple[int, ...] = ()
    """Rounds that the serving version sampled, taken whole."""
    num_reused: int = 0
    replayed: tuple[Replayed, ...] = ()
    """Older rounds, taken in part."""
    paths: tuple[Path, ...] = ()
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By path, the rows that are taken of a file that is not read whole."""

    @property
    def num_replayed(self) -> int:
        """Examples that come from older rounds."""
        return sum(part.num_examples for part in self.replayed)


def view_of(scope: RoundScope, collected: Collected) -> UpdateView:
    """Return what joins the update of a round; one whose files were damaged since is left out whole, with a warning.

    Args:
        scope: the round.
        collected: its own examples.
    """
    run, index = scope.run, scope.index
    config, results = run.config, run.journal.results()
    reused: list[int] = []
    paths: list[Path] = []
    number = 0
    for earlier in rounds_to_reuse(config, results, index, scope.policy.number):
        known = _collected(scope, earlier)
        files = [] if known is None else _sound_files(scope, earlier, known)
        if known is not None and files:
            reused.append(earlier)
            paths += files
            number += known.num_examples
    replayed: list[Replayed] = []
    rows: dict[str, tuple[int, ...]] = {}
    planned = plan_replay(
        config, index, reused, collected.num_examples + number, lambda r: _collected(scope, r)
    )
    for part in planned:
        known = _collected(scope, part.round)
        files = [] if known is None else _sound_files(scope, part.round, known)
        if files:
            replayed.append(part)
            paths += files
            rows |= _rows_by_file(files, taken_positions(config.seed, index, part))
    return UpdateView(tuple(reused), number, tuple(replayed), tuple(paths), rows)


def rounds_to_reuse(
    config: RunConfig, results: Sequence[RoundResult], index: int, serving: int
) -> list[int]:
    """Earlier rounds that `serving` sampled, in the stage that round `index` belongs to."""
    stage = config.stage_of(index)
    if not stage.sections.on_rejection.keep_examples:
        return []
    served = [result.after for result in results]
    return [
        result.round
        for result in results
        if 0 < result.round < index
        and sampling_version(config, served, result.round) == serving
        and config.stage_of(result.round).index == stage.index
    ]


def rounds_to_replay(config: RunConfig, index: int) -> list[tuple[int, int]]:
    """Age and number of the earlier rounds that `training.replay` reads in round `index`, the oldest first."""
    replay = config.stage_of(index).training.replay
    if replay is None:
        return []
    kind = config.builder_of(index).kind_name
    window = ((age, index - age) for age in range(min(replay.rounds, index - 1), 0, -1))
    return [(age, r) for age, r in window if config.builder_of(r).kind_name == kind]


def plan_replay(
    config: RunConfig, index: int, reused: Sequence[int], num_fresh: int, collected: CollectedOf
) -> list[Replayed]:
    """Return how many examples round `index` takes of each earlier round.

    Args:
        config: of the run.
        index: the round.
        reused: earlier rounds that it takes whole.
        num_fresh: examples that are there without replay.
        collected: finds what a round collected.
    """
    replay = config.stage_of(index).training.replay
    window = [(a, r) for a, r in rounds_to_replay(config, index) if r not in reused]
    there = [(a, r, known) for a, r in window if (known := collected(r)) and known.num_examples]
    most = {} if replay is None else replay.most(num_fresh, [age for age, _, _ in there])
    return [
        Replayed(
            round=earlier,
            digest=known.digests.get("examples", ""),
            num_examples=taken,
            num_available=known.num_examples,
        )
        for age, earlier, known in there
        if (taken := min(most[age], known.num_examples))
    ]


def rounds_still_read(config: RunConfig, results: Sequence[RoundResult]) -> set[int]:
    """Finished rounds whose examples a coming round may read."""
    last = results[-1].round
    wanted = set(rounds_to_reuse(config, results, last + 1, results[-1].after))
    for (
        stage
    ) in config.resolved_stages:  # of a stage's coming rounds, the first reads furthest back
        first = max(last + 1, stage.first_round)
        if first <= min(stage.last_round, config.rounds):
            wanted |= {r for _, r in rounds_to_replay(config, first) if r <= last}
    return wanted


def taken_positions(seed: int, index: int, part: Replayed) -> tuple[int, ...]:
    """Positions, over all files of the round in order, of the examples that round `index` takes of an earlier one."""
    rng = derive_rng(seed, "replay", index, part.round, part.digest)
    return tuple(sorted(rng.sample(range(part.num_available), part.num_examples)))


def learning_rate_factor(scope: RoundScope) -> float:
    """Factor of the learning rate: `on_rejection.learning_rate_factor` once for each rejection in a row."""
    return scope.stage.sections.on_rejection.learning_rate_factor ** rejected_in_a_row(scope)


def _collected(scope: RoundScope, index: int) -> Collected | None:
    """Find what an earlier round collected; None without examples."""
    found = scope.run.journal.find(index, Phase.COLLECT, Collected)
    return found if found is not None and found.num_examples else None


def _sound_files(scope: RoundScope, index: int, known: Collected) -> list[Path]:
    """The example files of an earlier round; none when they are not what the journal says, which is told."""
    folder = scope.run.folder.round(index)
    why = _damage(folder, known)
    if why is None:
        return folder.shards("examples")
    scope.run.events.warn(
        f"round {scope.index}: {why}, so the examples of round {index} are not used again",
        round_index=scope.index,
    )
    return []


def _damage(folder: RoundFolder, known: Collected) -> str | None:
    files = folder.shards("examples")
    damaged = [path for path in files if find_damage(path) is not None]
    if damaged:
        return f"{damaged[0]} was damaged"
    try:
        found = digests(folder, ["examples"])["examples"]
    except ArtifactError as error:
        return str(error)
    same = found == known.digests.get("examples", found)
    return None if same else f"{folder.path / 'examples'} is not what the journal recorded"


def _rows_by_file(files: Sequence[Path], positions: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Rows of each file, counted from its start, of positions that are counted over all of them."""
    found: dict[str, tuple[int, ...]] = {}
    start = 0
    for path in files:
        marker = read_marker(path)
        end = start + (0 if marker is None else marker.num_rows)
        found[str(path)] = tuple(p - start for p in positions if start <= p < end)
        start = end
    return found
