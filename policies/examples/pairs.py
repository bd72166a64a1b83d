"""Parts that pair builders share: when two trajectories make a pair, and why a group without contrast makes none."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base.records import Trajectory
from policies.examples.builder import Built, Candidate
from policies.examples.kinds import PreferencePair, TokenSequence


def pair_of(
    chosen: Candidate, rejected: Candidate, built: Built, *, scored_from: int = 0
) -> PreferencePair | None:
    """The pair, or None with its reason counted in `built.dropped`.

    Both sides must continue the same prompt tokens: a loss compares them given the prompt. They must also
    differ in what the policy wrote: equal sequences cancel, and different observations are nobody's merit.

    Args:
        chosen: refused with `chosen_truncated` or `chosen_failed_call` when it may lose only.
        rejected: the other side.
        built: where reasons are counted.
        scored_from: position before which neither side is scored: the length of what they share.
    """
    if chosen.trajectory.prompt_token_ids != rejected.trajectory.prompt_token_ids:
        built.dropped["prefix_differs"] += 1
        return None
    if policy_tokens(chosen.trajectory) == policy_tokens(rejected.trajectory):
        built.dropped["identical"] += 1
        return None
    if chosen.unfit_to_win is not None:
        built.dropped[f"chosen_{chosen.unfit_to_win}"] += 1
        return None
    return PreferencePair(
        id=f"{chosen.trajectory.id}>{rejected.trajectory.id}",
        prompt_id=chosen.trajectory.prompt_id,
        chosen=TokenSequence.of(chosen.trajectory, scored_from=scored_from),
        rejected=TokenSequence.of(rejected.trajectory, scored_from=scored_from),
        margin=chosen.score - rejected.score,
    )


def policy_tokens(trajectory: Trajectory) -> tuple[tuple[int, ...], ...]:
    """The token ids that the policy wrote, turn by turn."""
    return tuple(turn.token_ids for turn in trajectory.turns if turn.role == "policy")


def count_without_contrast(candidates: Sequence[Candidate], built: Built, otherwise: str) -> None:
    """Count all candidates of a group that gives no pair: `all_right`, `all_wrong`, or `otherwise`."""
    bits = {candidate.feedback.desirable for candidate in candidates}
    reason = (
        {True: "all_right", False: "all_wrong"}[bits.pop() is True] if len(bits) == 1 else otherwise
    )
    if candidates:
        built.dropped[reason] += len(candidates)
