"""Which examples each preference builder makes of a group, and how it counts what it leaves out."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base.component import create
from policies.base.records import (
    Feedback,
    Message,
    Prompt,
    Sampling,
    ScoredGroup,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from policies.examples.builder import PREFERENCES, Built
from policies.examples.kinds import PreferencePair, UnpairedExample


def turn(role: str, *ids: int) -> Turn:
    return Turn.model_validate(
        {
            "role": role,
            "token_ids": ids,
            "text": "",
            "logprobs": [-1.0] * len(ids) if role == "policy" else [],
            "stop_reason": StopReason.STOP if role == "policy" else StopReason.OBSERVATION,
        }
    )


def attempt(
    index: int, *turns: Turn, prompt_ids: tuple[int, ...] = (1, 5), status: str = "complete"
) -> Trajectory:
    return Trajectory(
        id=f"t{index}",
        prompt_id="p",
        sample_index=index,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=prompt_ids,
        turns=turns,
        status=TrajectoryStatus(status),
        sampling=Sampling(),
    )


def group_of(scored: list[tuple[Trajectory, float | None]]) -> ScoredGroup:
    return ScoredGroup(
        prompt=Prompt(id="p", messages=(Message(role="user", content="?"),)),
        trajectories=tuple(trajectory for trajectory, _ in scored),
        feedback=tuple(
            Feedback(
                trajectory_id=trajectory.id,
                score=score,
                desirable=None if score is None else score >= 0.5,
                unusable_because="verifier_error:v" if score is None else None,
            )
            for trajectory, score in scored
        ),
    )


def group(*scores: float | None, lengths: list[int] | None = None) -> ScoredGroup:
    """Attempt i writes the tokens 100 + i, ... so that all differ."""
    sizes = lengths or [2] * len(scores)
    return group_of(
        [
            (attempt(i, turn("policy", *range(100 * (i + 1), 100 * (i + 1) + size))), score)
            for i, (score, size) in enumerate(zip(scores, sizes, strict=True))
        ]
    )


def build(config: dict[str, Any] | str, of: ScoredGroup, seed: int = 0) -> Built:
    built: Built = create(PREFERENCES.parse(config)).build(of, random.Random(seed))
    return built


def ids(built: Built) -> list[str]:
    return [example.id for example in built.examples]


# --- right_vs_wrong


def test_right_wins_over_wrong_with_its_tokens_and_margin() -> None:
    built = build("right_vs_wrong", group(0.9, 0.1))
    (pair,) = built.examples
    assert isinstance(pair, PreferencePair)
    assert (pair.id, pair.prompt_id, pair.margin) == ("t0>t1", "p", 0.8)
    assert pair.chosen.token_ids == (1, 5, 100, 101)
    assert pair.chosen.loss_mask == (0, 0, 1, 1)
    assert built.dropped == {}


@pytest.mark.parametrize(
    ("scores", "reason"), [((1.0, 1.0, 0.5), "all_right"), ((0.0, 0.2), "all_wrong")]
)
def test_a_group_without_contrast_gives_no_pair(scores: tuple[float, ...], reason: str) -> None:
    built = build("right_vs_wrong", group(*scores))
    assert built.examples == []
    assert built.dropped == {reason: len(scores)}


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 60), st.integers(0, 1000))
@settings(deadline=None)
def test_pairs_are_different_even_and_all_accounted_for(
    num_right: int, num_wrong: int, cap: int, seed: int
) -> None:
    config = {"type": "right_vs_wrong", "pairs_per_prompt": cap}
    built = build(config, group(*[1.0] * num_right, *[0.0] * num_wrong), seed)
    num_possible = num_right * num_wrong
    num_made = min(cap, num_possible)
    assert len(set(ids(built))) == len(built.examples) == num_made
    assert built.dropped["cap"] == num_possible - num_made
    uses: Counter[str] = Counter()
    for pair in built.examples:
        assert isinstance(pair, PreferencePair)
        uses.update((pair.chosen.trajectory_id, pair.rejected.trajectory_id))
    for index in range(num_right + num_wrong):
        side = num_right if index < num_right else num_wrong
        assert math.floor(num_made / side) <= uses[f"t{index}"] <= math.ceil(num_made / side)


def test_another_seed_draws_other_pairs_and_the_same_seed_the_same() -> None:
    of = group(*[1.0] * 6, *[0.0] * 6)
    assert ids(build("right_vs_wrong", of, 1)) == ids(build("right_vs_wrong", of, 1))
    assert len({tuple(ids(build("right_vs_wrong", of, seed))) for seed in range(10)}) > 5


def test_pairs_share_prompt_tokens_and_differ_in_what_the_policy_wrote() -> None:
    same = turn("policy", 7, 8)
    of = group_of(
        [
            (attempt(0, same, turn("observation", 1), turn("policy", 9)), 1.0),
            (attempt(1, same, turn("observation", 2), turn("policy", 9)), 0.0),
            (attempt(2, turn("policy", 3), prompt_ids=(1, 6)), 0.0),
        ]
    )
    for name in ("right_vs_wrong", "all_pairs"):
        built = build(name, of)
        assert built.examples == []
        assert built.dropped["identical"] == 1
        assert built.dropped["prefix_differs"] == 1


def test_what_cannot_be_learned_from_is_counted_by_reason() -> None:
    policy = turn("policy", 7)
    of = group_of(
        [
            (attempt(0, policy), 1.0),
            (attempt(1, policy), 1.0),
            (attempt(2, turn("policy", 8), status="truncated"), 0.0),
            (attempt(3, status="error"), None),
            (attempt(4, turn("policy", 9)), None),
            (attempt(5, turn("observation", 9)), 0.0),
        ]
    )
    built = build({"type": "right_vs_wrong", "drop_truncated": True}, of)
    assert built.examples == []
    assert built.dropped == {
        "duplicate": 1,
        "truncated": 1,
        "rollout_error": 1,
        "unusable: verifier_error:v": 1,
        "nothing_to_learn_from": 1,
        "all_right": 1,
    }


# --- best_vs_worst


def test_the_ends_make_the_pair_and_equals_have_the_same_chance() -> None:
    of = group(0.9, 0.9, 0.5, 0.1, 0.1, lengths=[5, 3, 1, 4, 2])
    drawn = Counter(ids(build("best_vs_worst", of, seed))[0] for seed in range(400))
    assert set(drawn) == {"t0>t3", "t0>t4", "t1>t3", "t1>t4"}
    assert all(60 < number < 140 for number in drawn.values())  # 100 expected, 4.6 deviations
    assert ids(build("best_vs_worst", of, 7)) == ids(build("best_vs_worst", of, 7))
    assert build("best_vs_worst", of).dropped == {"between": 3}


@pytest.mark.parametrize("name", ["best_vs_worst", "all_pairs"])
def test_scores_that_differ_by_rounding_are_a_tie(name: str) -> None:
    assert 0.1 + 0.2 > 0.3
    assert build(name, group(0.1 + 0.2, 0.3)).dropped == {"all_wrong": 2}


@pytest.mark.parametrize("name", ["best_vs_worst", "all_pairs"])
def test_a_margin_is_reached_by_scores_that_are_that_far_apart(name: str) -> None:
    assert 0.7 - 0.5 < 0.2
    assert ids(build({"type": name, "margin": 0.2}, group(0.7, 0.5))) == ["t0>t1"]


@pytest.mark.parametrize(
    ("scores", "margin", "dropped"),
    [
        ((0.6, 0.5), 0.2, {"margin_below": 2}),
        ((0.7, 0.7), 0.0, {"all_right": 2}),
        ((0.1, 0.1), 0.0, {"all_wrong": 2}),
        ((), 0.0, {}),
    ],
)
def test_ends_too_close_make_no_pair(
    scores: tuple[float, ...], margin: float, dropped: dict[str, int]
) -> None:
    built = build({"type": "best_vs_worst", "margin": margin}, group(*scores))
    assert (built.examples, built.dropped) == ([], dropped)


# --- all_pairs


def test_every_pair_over_the_margin_is_made() -> None:
    built = build({"type": "all_pairs", "margin": 0.25}, group(1.0, 0.5, 0.0, 0.4))
    assert sorted(ids(built)) == ["t0>t1", "t0>t2", "t0>t3", "t1>t2", "t3>t2"]
    assert built.dropped == {"margin_below": 1}


def test_too_many_pairs_are_capped_at_random() -> None:
    config = {"type": "all_pairs", "max_pairs_per_prompt": 3}
    of = group(0.0, 0.25, 0.5, 0.75, 1.0)
    built = build(config, of)
    assert len(set(ids(built))) == 3
    assert built.dropped == {"cap": 7}
    assert len({tuple(ids(build(config, of, seed))) for seed in range(10)}) > 3
    assert len(build({"type": "all_pairs", "max_pairs_per_prompt": None}, of).examples) == 10


# --- thresholded


def test_thresholds_make_desirable_and_undesirable_examples() -> None:
    config = {"type": "thresholded", "threshold": 0.8, "low_threshold": 0.2}
    built = build(config, group(0.8, 0.79, 0.21, 0.2))
    sides = {e.id: e.desirable for e in built.examples if isinstance(e, UnpairedExample)}
    assert sides == {"t0": True, "t3": False}
    assert built.dropped == {"between_thresholds": 2}


def test_without_a_low_threshold_nothing_lies_between() -> None:
    built = build("thresholded", group(0.5, 0.49))
    assert [e.desirable for e in built.examples if isinstance(e, UnpairedExample)] == [True, False]


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_all_right_and_all_wrong_prompts_are_kept(score: float) -> None:
    assert len(build("thresholded", group(score, score, score)).examples) == 3


def test_caps_per_class_and_prompt() -> None:
    of = group(1, 1, 1, 1, 0, 0)
    built = build({"type": "thresholded", "max_per_class": 2}, of)
    sides = Counter(e.desirable for e in built.examples if isinstance(e, UnpairedExample))
    assert sides == {True: 2, False: 2}
    assert built.dropped == {"cap": 2}
    both = build({"type": "thresholded", "max_per_class": 2, "max_per_prompt": 3}, of)
    assert (len(both.examples), both.dropped) == (3, {"cap": 3})
    assert ids(both) == sorted(ids(both))


def test_crossed_thresholds_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be above"):
        PREFERENCES.parse({"type": "thresholded", "threshold": 0.2, "low_threshold": 0.8})
