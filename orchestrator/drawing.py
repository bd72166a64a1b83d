"""The draw phase: which prompts the round works on.

*Consumes* the prompt sets. *Produces* `prompts.parquet` of the round and the shard files.
*On failure*: nothing to undo; files are written whole and a repeated draw gives the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.phases import Drawn
from orchestrator.prompts.draw import draw as draw_prompts
from orchestrator.run import RoundScope
from orchestrator.run_folder import RoundFolder
from policies.errors import ResumeError
from policies.records import Prompt
from policies.shards import content_digest, read_marker, write_records


def draw(scope: RoundScope) -> Drawn:
    """Draw the round's prompts and cut them into shards. Round 0 fixes the held-out set and both sets' digests."""
    run = scope.run
    held_out = content_digest(run.held_out_prompts)
    train = content_digest(run.train_prompts)
    if scope.index == 0:
        write_shards(
            scope.folder.evaluation, run.held_out_prompts, run.config.rollout.prompts_per_shard
        )
        return Drawn(
            num_prompts=len(run.held_out_prompts), num_shards=0, digest=f"{train}:{held_out}"
        )
    prompts = draw_prompts(
        run.train_prompts, scope.index, run.config.prompts.per_round, run.config.seed
    )
    write_shards(
        scope.folder.evaluation, run.held_out_prompts, run.config.rollout.prompts_per_shard
    )
    number = write_shards(scope.folder, prompts, run.config.rollout.prompts_per_shard)
    return Drawn(num_prompts=len(prompts), num_shards=number, digest=content_digest(prompts))


def check_same_prompts(
    recorded: Drawn, train: Sequence[Prompt], held_out: Sequence[Prompt]
) -> None:
    """Refuse to go on with prompt files that changed since the run began.

    Raises:
        ResumeError: a set differs from what round 0 recorded.
    """
    for name, before, now in zip(
        ("prompts.train", "prompts.held_out"),
        recorded.digest.split(":"),
        (content_digest(train), content_digest(held_out)),
        strict=True,
    ):
        if before != now:
            raise ResumeError(
                f"{name} changed since the run began (digest {before[:12]} -> {now[:12]}). "
                "Fix: restore the data, or start a new run"
            )


def write_shards(folder: RoundFolder, prompts: Sequence[Prompt], per_shard: int) -> int:
    """Write the prompts, whole and cut into shards; returns the number of shards."""
    if read_marker(folder.prompts) is None:
        write_records(folder.prompts, Prompt, list(prompts))
    parts = [prompts[i : i + per_shard] for i in range(0, len(prompts), per_shard)]
    for index, part in enumerate(parts):
        path = folder.shard(index).prompts
        if read_marker(path) is None:
            write_records(path, Prompt, list(part))
    return len(parts)
