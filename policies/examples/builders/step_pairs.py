"""Pairs that part at a step: right over wrong among continuations of one beginning, scored from there on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

from pydantic import Field

from policies.base.bounds import MAX_COUNT, MAX_TOKENS
from policies.base.records import ScoredGroup, StepScore, Trajectory
from policies.base.requirements import Requirements
from policies.examples.builder import Built, Candidate, PreferenceBuilder
from policies.examples.kinds import Example, PreferencePair, TokenSequence
from policies.examples.pairs import pair_of
from policies.examples.soft_labels import of_scores

_ForkId = tuple[str, int] | tuple[int, ...]
"""Trunk and position of a branch, or the tokens that two trajectories share by chance."""


@dataclass(frozen=True)
class _Parting:
    """Two trajectories that begin alike."""

    one: Candidate
    other: Candidate
    at: int
    """First position in which their tokens differ."""
    raw: bool
    """Their scores are raw."""


class StepPairs(PreferenceBuilder):
    """Compares a branched trajectory with its trunk and with the other branches of the same fork.

    What both sides share is not scored: log-probs count from the first token that differs to the end, as in MCTS-DPO
    (Xie et al., arXiv 2405.00451); the shared part would cancel in the difference of log-ratios, but not in losses
    that divide by length. `by: step` takes the label of the step at the fork instead of the trajectory's, and
    both sides end with that step (Step-DPO, Lai et al., arXiv 2406.18629).

    Dropped, all counting pairs of trajectories: `no_fork` (they share no more than the prompt, or belong to
    different forks), `branch_differs` (a branch that does not begin like its trunk), `nothing_after_fork` (one side
    ends there), `observation_differs` (they part in what the policy did not write), `no_contrast`, `unlabelled_step`,
    `cap`; `alone` counts a trajectory that has no other.
    """

    kind: ClassVar[type[Example]] = PreferencePair

    class Config(PreferenceBuilder.Config):
        """Settings of `step_pairs`."""

        min_shared_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
        """Also pair trajectories that were not branched, when at least so many of their tokens after the prompt are
        equal; null pairs the branches of a fork only."""
        by: Literal["outcome", "step"] = "outcome"
        """What says which side is right: the score of the whole trajectory, or that of the step at the fork (from
        step-level verifiers or judges)."""
        pairs_per_fork: int = Field(default=1, ge=1, le=MAX_COUNT)
        """Most pairs from one fork, chosen at random."""
        max_pairs_per_prompt: int | None = Field(default=8, ge=1, le=MAX_COUNT)
        """Most pairs from one prompt, chosen at random after `pairs_per_fork`; null keeps all."""

        def requires(self) -> Requirements:
            """Judged steps, where they say which side is right."""
            return super().requires() + Requirements(judged_steps=self.by == "step")

    config: Config

    def build(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return the pairs of `group`, fork by fork."""
        built = Built()
        candidates = self.candidates(group, built)
        if len(candidates) == 1:
            built.dropped["alone"] += 1
        forks: dict[_ForkId, list[PreferencePair]] = {}
        for one, other in combinations(candidates, 2):
            differ = _first_difference(one.trajectory, other.trajectory)
            parting = _Parting(one, other, differ, group.raw)
            fork = self._fork_of(parting)
            if fork is None:
                built.dropped["no_fork"] += 1
            elif (pair := self._pair(parting, fork, built)) is not None:
                forks.setdefault(fork, []).append(pair)
        kept = [
            p for pairs in forks.values() for p in _some(pairs, self.config.pairs_per_fork, rng)
        ]
        kept = _some(kept, self.config.max_pairs_per_prompt, rng)
        if left_out := sum(map(len, forks.values())) - len(kept):
            built.dropped["cap"] += left_out
        built.examples.extend(kept)
        return built

    def _fork_of(self, parting: _Parting) -> _ForkId | None:
        """The fork that both come from, if they share more than the prompt."""
        one, other = parting.one.trajectory, parting.other.trajectory
        start = len(one.prompt_token_ids)
        shared = _shared_fork(one, other)
        if shared is not None and shared[1] > start:
            return shared
        least = self.config.min_shared_tokens
        if least is None or parting.at < start + least:
            return None
        return one.token_ids[: parting.at]

    def _pair(self, parting: _Parting, fork: _ForkId, built: Built) -> PreferencePair | None:
        at, sides = parting.at, (parting.one, parting.other)
        if isinstance(fork[0], str) and at < fork[1]:
            built.dropped["branch_differs"] += 1
            return None
        if any(at >= len(c.trajectory.token_ids) for c in sides):
            built.dropped["nothing_after_fork"] += 1
            return None
        if not all(c.trajectory.loss_mask[at] for c in sides):
            built.dropped["observation_differs"] += 1
            return None
        if self.config.by == "step":
            return _step_pair(parting, built)
        if sides[0].feedback.desirable == sides[1].feedback.desirable:
            built.dropped["no_contrast"] += 1
            return None
        chosen, rejected = sides if sides[0].feedback.desirable else sides[::-1]
        return pair_of(chosen, rejected, built, scored_from=at)


def _step_pair(parting: _Parting, built: Built) -> PreferencePair | None:
    """The pair of the two steps at the fork; what comes after them was not judged, and is cut off."""
    sides = [(c, _step_at(c, parting.at)) for c in (parting.one, parting.other)]
    labelled = [(c, step, end) for c, found in sides if found is not None for step, end in [found]]
    if len(labelled) < 2:
        built.dropped["unlabelled_step"] += 1
        return None
    if labelled[0][1].desirable == labelled[1][1].desirable:
        built.dropped["no_contrast"] += 1
        return None
    labelled.sort(key=lambda side: not side[1].desirable)
    (chosen, right, right_end), (rejected, wrong, wrong_end) = labelled
    pair = pair_of(chosen, rejected, built, scored_from=parting.at)
    if pair is None:
        return None
    return pair.model_copy(
        update={
            "chosen": _until(pair.chosen, right_end),
            "rejected": _until(pair.rejected, wrong_end),
            "margin": right.score - wrong.score,
            "soft_label": of_scores(right.score, wrong.score, raw=parting.raw),
        }
    )


def _shared_fork(one: Trajectory, other: Trajectory) -> tuple[str, int] | None:
    """The fork of a branch and its trunk, or of two branches."""
    for child, parent in ((one, other), (other, one)):
        if child.branch is not None and child.branch.parent == parent.id:
            return child.branch.parent, child.branch.at_token
    if one.branch is not None and one.branch == other.branch:
        return one.branch.parent, one.branch.at_token
    return None


def _first_difference(one: Trajectory, other: Trajectory) -> int:
    left, right = one.token_ids, other.token_ids
    shorter = min(len(left), len(right))
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)


def _step_at(candidate: Candidate, position: int) -> tuple[StepScore, int] | None:
    """The judged step that holds the token at `position`, and where it ends."""
    for step in candidate.feedback.steps:
        start = candidate.trajectory.start_of_turn(step.span.turn)
        if start + step.span.start <= position < start + step.span.end:
            return step, start + step.span.end
    return None


def _until(sequence: TokenSequence, end: int) -> TokenSequence:
    """The sequence without what comes from position `end` on."""
    return sequence.model_copy(
        update={
            "token_ids": sequence.token_ids[:end],
            "loss_mask": sequence.loss_mask[:end],
            "logprobs": sequence.logprobs[:end],
            "turns": tuple(
                turn.model_copy(update={"end": min(turn.end, end)})
                for turn in sequence.turns
                if turn.start < end
            ),
        }
    )


def _some(
    pairs: list[PreferencePair], limit: int | None, rng: random.Random
) -> list[PreferencePair]:
    if limit is None or len(pairs) <= limit:
        return pairs
    return [pairs[i] for i in sorted(rng.sample(range(len(pairs)), limit))]
