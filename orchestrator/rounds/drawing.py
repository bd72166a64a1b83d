"""The draw phase: which prompts the round works on.

*Consumes* the prompt sets. *Produces* `prompts.parquet` of the round and the shard files.
*On failure*: nothing to undo; files are written whole and a repeated draw gives the same ones. A file that was
damaged since is put into quarantine and written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from orchestrator.prompts.draw import draw as draw_prompts
from orchestrator.rounds.context import RoundScope, Run
from orchestrator.runs.folder import RoundFolder
from orchestrator.runs.phases import Drawn
from policies.base.errors import ResumeError
from policies.base.records import Prompt
from policies.base.seeds import derive_seed
from policies.storage.artifacts import content_digest, find_damage, read_marker, write_records
from policies.storage.version_files import files_digest

NO_SETS: Mapping[int, Sequence[Prompt]] = MappingProxyType({})


def draw(scope: RoundScope) -> Drawn:
    """Draw the round's prompts and cut them into shards. Round 0 fixes the held-out set and both sets' digests."""
    run = scope.run
    held_out = content_digest(run.held_out_prompts)
    train = content_digest(run.train_prompts)
    per_shard = run.config.rollout.prompts_per_shard
    write_shards(run, scope.folder.evaluation, run.held_out_prompts, per_shard)
    if scope.index == 0:
        sets = [train, held_out, *([content_digest(run.test_prompts)] if run.test_prompts else [])]
        return Drawn(
            num_prompts=len(run.held_out_prompts),
            num_shards=0,
            digest=":".join(sets),
            model=files_digest(run.store.get(0)),
            judge_models={name: files_digest(v) for name, v in run.judge_models.items()},
            stage_prompts=stage_digests(run.stage_prompts),
        )
    prompts = _drawn(scope)
    number = write_shards(run, scope.folder, prompts, per_shard)
    return Drawn(num_prompts=len(prompts), num_shards=number, digest=content_digest(prompts))


def _drawn(scope: RoundScope) -> list[Prompt]:
    """The prompts of a round; a stage that draws otherwise than the run begins passes of its own over its set."""
    stage, seed, every = scope.stage, scope.run.config.seed, scope.train_prompts
    per_round = stage.sections.prompts.drawn(len(every))
    if not stage.own_prompts:
        return draw_prompts(every, scope.index, per_round, seed)
    own = derive_seed(seed, "draw", "stage", stage.index)
    return draw_prompts(every, scope.index - stage.first_round + 1, per_round, own)


def stage_digests(stage_prompts: Mapping[int, Sequence[Prompt]]) -> dict[str, str]:
    """Content digests of the sets that stages have of their own, by the stage's index."""
    return {str(index): content_digest(prompts) for index, prompts in stage_prompts.items()}


def repair_prompts(scope: RoundScope) -> None:
    """Write again what was damaged of the round's prompt files since they were drawn."""
    run, held_out = scope.run, scope.folder.evaluation
    files = [f.prompts for f in (held_out, scope.folder) if scope.index or f is held_out]
    files += [p for f in (held_out, scope.folder) for p in sorted(f.prompt_shards())]
    damaged = [(path, why) for path in files if (why := find_damage(path)) is not None]
    for path, why in damaged:
        run.quarantine.set_aside(path, why)
        run.events.warn(
            f"{path}: {why}; it is in quarantine and drawn again", round_index=scope.index
        )
    if damaged:
        draw(scope)


def write_measured_prompts(
    scope: RoundScope, folder: RoundFolder, prompts: Sequence[Prompt]
) -> None:
    """Write the prompts of a further measurement, and again what was damaged of them since."""
    run = scope.run
    for path in [folder.prompts, *folder.prompt_shards()]:
        if read_marker(path) is not None and (why := find_damage(path)) is not None:
            run.quarantine.set_aside(path, why)
            run.events.warn(f"{path}: {why}; it is in quarantine", round_index=scope.index)
    write_shards(run, folder, prompts, run.config.rollout.prompts_per_shard)


def check_same_prompts(
    recorded: Drawn,
    train: Sequence[Prompt],
    held_out: Sequence[Prompt],
    test: Sequence[Prompt] = (),
    stage_prompts: Mapping[int, Sequence[Prompt]] = NO_SETS,
) -> None:
    """Refuse to go on with prompt files that changed since the run began.

    Raises:
        ResumeError: a set differs from what round 0 recorded.
    """
    sets = zip(
        ("prompts.train", "prompts.held_out", "prompts.test"),
        recorded.digest.split(":"),
        (content_digest(train), content_digest(held_out), content_digest(test)),
        strict=False,
    )
    now_of = stage_digests(stage_prompts)
    own = [
        (f"stages[{index}].prompts.train", before, now_of.get(index, ""))
        for index, before in recorded.stage_prompts.items()
    ]
    for name, before, now in [*sets, *own]:
        if before != now:
            raise ResumeError(
                f"{name} changed since the run began (digest {before[:12]} -> {now[:12]}). "
                "Fix: restore the data, or start a new run"
            )


def write_shards(run: Run, folder: RoundFolder, prompts: Sequence[Prompt], per_shard: int) -> int:
    """Write the prompts, whole and cut into shards; returns the number of shards."""
    parts = [prompts[i : i + per_shard] for i in range(0, len(prompts), per_shard)]
    places = [folder.shard(index).prompts for index in range(len(parts))]
    for path, part in zip([folder.prompts, *places], [prompts, *parts], strict=True):
        if read_marker(path) is None:
            write_records(path, Prompt, list(part), guard=run.fence)
    return len(parts)
