"""What pair builders share: when two trajectories make a pair, and why a group without contrast makes none."""

from __future__ import annotations

from collections.abc import Sequence

from policies.examples import PreferencePair, TokenSequence
from policies.preference import Built, Candidate
from policies.records import Trajectory


def pair_of(chosen: Candidate, rejected: Candidate, built: Built) -> PreferencePair | None:
    """The pair, or None with its reason counted in `built.dropped`.

    Both sides must continue the same prompt tokens: a loss compares them given the prompt. They must also
    differ in what the policy wrote: equal sequences cancel, and different observations are nobody's merit.
    """
    if chosen.trajectory.prompt_token_ids != rejected.trajectory.prompt_token_ids:
        built.dropped["prefix_differs"] += 1
        return None
    if policy_tokens(chosen.trajectory) == policy_tokens(rejected.trajectory):
        built.dropped["identical"] += 1
        return None
    return PreferencePair(
        id=f"{chosen.trajectory.id}>{rejected.trajectory.id}",
        prompt_id=chosen.trajectory.prompt_id,
        chosen=TokenSequence.of(chosen.trajectory),
        rejected=TokenSequence.of(rejected.trajectory),
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
