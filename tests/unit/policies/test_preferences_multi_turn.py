"""What builders make of conversations: failed calls, cut attempts, imitation, and pairs that part at a step."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base.component import create
from policies.base.records import (
    Branch,
    Ending,
    Feedback,
    Message,
    Prompt,
    Sampling,
    ScoredGroup,
    Span,
    StepScore,
    StopReason,
    ToolCall,
    ToolCallStatus,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from policies.examples.builder import PREFERENCES, Built
from policies.examples.kinds import PreferencePair, SupervisedExample, UnpairedExample
from workers.training.batches.plan import unusable_because

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),))


def said(*ids: int) -> Turn:
    return Turn(
        role="policy",
        token_ids=ids,
        text="",
        logprobs=tuple(-0.1 * i for i in ids),
        stop_reason=StopReason.STOP,
    )


def seen(*ids: int, status: ToolCallStatus = ToolCallStatus.OK) -> Turn:
    return Turn(
        role="observation",
        token_ids=ids,
        text="",
        stop_reason=StopReason.OBSERVATION,
        calls=(ToolCall(tool="python", status=status),),
    )


def attempt(name: str, *turns: Turn, **changes: Any) -> Trajectory:
    return Trajectory(
        id=name,
        prompt_id="p",
        sample_index=0,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=(1, 2),
        turns=turns,
        status=changes.pop("status", TrajectoryStatus.COMPLETE),
        sampling=Sampling(),
        **changes,
    )


def group(
    *scored: tuple[Trajectory, float], steps: dict[str, tuple[StepScore, ...]] | None = None
) -> ScoredGroup:
    return ScoredGroup(
        prompt=PROMPT,
        trajectories=tuple(t for t, _ in scored),
        feedback=tuple(
            Feedback(
                trajectory_id=t.id,
                score=score,
                desirable=score >= 0.5,
                steps=(steps or {}).get(t.id, ()),
            )
            for t, score in scored
        ),
    )


def build(kind: str, of: ScoredGroup, seed: int = 0, **config: Any) -> Built:
    built: Built = create(PREFERENCES.parse({"type": kind, **config})).build(
        of, random.Random(seed)
    )
    return built


def ids(built: Built) -> list[str]:
    return sorted(example.id for example in built.examples)


# --- what every builder can leave out


def with_failures() -> ScoredGroup:
    failed = ToolCallStatus.FAILED
    return group(
        (attempt("right", said(3), seen(9), said(4)), 1.0),
        (attempt("lucky", said(5), seen(9, status=failed), said(4)), 1.0),
        (attempt("wrong", said(6), seen(9), said(7)), 0.0),
        (attempt("unlucky", said(8), seen(9, status=failed), said(7)), 0.0),
    )


@pytest.mark.parametrize(
    ("setting", "kept", "num_dropped"),
    [
        ("no", ["lucky", "right", "unlucky", "wrong"], 0),
        ("right", ["right", "unlucky", "wrong"], 1),
        ("all", ["right", "wrong"], 2),
    ],
)
def test_trajectories_with_a_failed_call_are_left_out_as_asked(
    setting: str, kept: list[str], num_dropped: int
) -> None:
    built = build("thresholded", with_failures(), drop_failed_calls=setting)
    assert ids(built) == kept
    assert built.dropped["failed_call"] == num_dropped


def test_a_call_that_failed_after_the_last_policy_turn_came_too_late_to_matter() -> None:
    late = attempt("t", said(3), seen(9), said(4), seen(9, status=ToolCallStatus.TIMED_OUT))
    assert ids(build("thresholded", group((late, 1.0)), drop_failed_calls="all")) == ["t"]


def test_the_length_limit_counts_prompt_and_observations() -> None:
    of = group((attempt("t", said(3), seen(9), said(4)), 1.0), (attempt("u", said(3, 4, 5)), 1.0))
    assert ids(build("thresholded", of, max_tokens=5)) == ["t", "u"]
    assert build("thresholded", of, max_tokens=4).dropped == {"too_long": 2}


def test_equal_trajectories_are_kept_once_unless_asked_for() -> None:
    of = group((attempt("t", said(3)), 1.0), (attempt("u", said(3)), 1.0))
    assert build("thresholded", of).dropped == {"duplicate": 1}
    assert ids(build("thresholded", of, keep_duplicates=True)) == ["t", "u"]


def test_what_may_only_lose_loses() -> None:
    cut = TrajectoryStatus.TRUNCATED
    of = group(
        (attempt("right", said(3)), 0.9),
        (attempt("cut right", said(4), status=cut), 1.0),
        (attempt("cut wrong", said(5), status=cut), 0.4),
        (attempt("wrong", said(6)), 0.0),
    )
    built = build("all_pairs", of)
    assert ids(built) == ["right>cut wrong", "right>wrong"]
    assert built.dropped == {"truncated": 1, "chosen_truncated": 1}
    assert ids(build("best_vs_worst", of)) == ["right>wrong"]
    assert ids(build("best_vs_worst", of, drop_truncated=False)) == ["cut right>wrong"]
    low = build("thresholded", of, threshold=0.3)
    assert [e.id for e in low.examples] == ["right", "wrong"]
    assert low.dropped == {"truncated": 2}


CUT_SHORT = [
    attempt("cut", said(4), status=TrajectoryStatus.TRUNCATED, ending=Ending.TOKEN_LIMIT),
    attempt("cut", said(4), status=TrajectoryStatus.TRUNCATED, ending=Ending.TURN_LIMIT),
    attempt("cut", said(4), ending=Ending.TURN_LIMIT),
    attempt("cut", said(4).model_copy(update={"stop_reason": StopReason.LENGTH})),
    attempt("cut", said(4), status=TrajectoryStatus.ERROR, ending=Ending.FAILED, error="lost"),
]


@pytest.mark.parametrize("cut", CUT_SHORT, ids=["tokens", "turns", "ending", "turn", "error"])
@pytest.mark.parametrize("name", list(PREFERENCES.members()))
def test_by_default_no_builder_takes_what_never_ended_for_good(name: str, cut: Trajectory) -> None:
    cut = cut.model_copy(update={"derived_from": "wrong"})
    of = group((cut, 1.0), (attempt("wrong", said(4, 5)), 0.0))
    config = {"min_shared_tokens": 1} if name == "step_pairs" else {}
    for seed in range(5):
        assert "cut" not in [
            e.id.partition(">")[0] for e in build(name, of, seed, **config).examples
        ]
    if cut.status is TrajectoryStatus.COMPLETE and name != "step_pairs":
        kept = build(name, of, drop_truncated=False)
        assert "cut" in [e.id.partition(">")[0] for e in kept.examples]


def test_an_episode_that_the_environment_ended_is_whole_although_its_last_move_ran_out() -> None:
    last = said(4).model_copy(update={"stop_reason": StopReason.LENGTH})
    won = attempt("won", last, ending=Ending.ENVIRONMENT, outcome=1.0)
    assert ids(build("best_vs_worst", group((won, 1.0), (attempt("lost", said(5)), 0.0)))) == [
        "won>lost"
    ]


# --- the paper's rule


def test_one_pair_per_prompt_is_any_right_over_any_wrong_with_equal_chance() -> None:
    of = group(
        *((attempt(f"r{i}", said(10 + i)), 1.0) for i in range(3)),
        *((attempt(f"w{i}", said(20 + i)), 0.0) for i in range(2)),
    )
    drawn = Counter(
        ids(build("right_vs_wrong", of, seed, pairs_per_prompt=1))[0] for seed in range(1200)
    )
    assert set(drawn) == {f"r{i}>w{j}" for i in range(3) for j in range(2)}
    # 200 expected of each; 5 standard deviations of a binomial (1200, 1/6) are 65
    assert all(135 < number < 265 for number in drawn.values())


# --- steps on single examples


def test_unpaired_examples_carry_the_labels_of_their_steps() -> None:
    trajectory = attempt("t", said(3, 4), seen(9), said(5))
    steps = (
        StepScore(span=Span(turn=0, start=1, end=2), score=0.0, desirable=False),
        StepScore(span=Span(turn=2, start=0, end=1), score=1.0, desirable=True),
    )
    (example,) = build("thresholded", group((trajectory, 1.0), steps={"t": steps})).examples
    assert isinstance(example, UnpairedExample)
    found = [(s.start, s.end, s.desirable) for s in example.sequence.steps]
    assert found == [(3, 4, False), (5, 6, True)]


# --- imitate


def test_good_and_different_trajectories_are_imitated() -> None:
    of = group(
        (attempt("good", said(3)), 0.9),
        (attempt("same", said(3)), 0.9),
        (attempt("cut", said(4), status=TrajectoryStatus.TRUNCATED), 1.0),
        (attempt("bad", said(5)), 0.5),
    )
    built = build("imitate", of, threshold=0.8)
    (example,) = built.examples
    assert isinstance(example, SupervisedExample)
    assert (example.id, example.sequence.loss_mask) == ("good", (0, 0, 1))
    assert built.dropped == {"duplicate": 1, "truncated": 1, "below_threshold": 1}
    assert ids(build("imitate", of, drop_truncated=False)) == ["bad", "cut", "good"]


def test_the_most_that_a_prompt_gives_is_drawn_at_random() -> None:
    of = group(*((attempt(f"t{i}", said(10 + i)), 1.0) for i in range(6)))
    assert len(build("imitate", of).examples) == 4
    assert len(build("imitate", of, max_per_prompt=None).examples) == 6
    drawn = {ids(build("imitate", of, seed, max_per_prompt=1))[0] for seed in range(60)}
    assert drawn == {f"t{i}" for i in range(6)}


# --- step pairs


def branch(name: str, at: int, *turns: Turn, parent: str = "trunk") -> Trajectory:
    return attempt(name, *turns, branch=Branch(parent=parent, at_token=at))


def test_branches_of_one_fork_and_their_trunk_are_compared_from_the_fork_on() -> None:
    of = group(
        (attempt("trunk", said(3, 4, 5)), 1.0),
        (branch("b1", 3, said(3, 6, 7)), 0.0),
        (branch("b2", 3, said(3, 8)), 0.0),
        (branch("other fork", 4, said(3, 4, 9)), 1.0),
    )
    built = build("step_pairs", of, pairs_per_fork=9)
    assert ids(built) == ["trunk>b1", "trunk>b2"]
    pair = next(e for e in built.examples if e.id == "trunk>b1")
    assert isinstance(pair, PreferencePair)
    assert pair.chosen.loss_mask == pair.rejected.loss_mask == (0, 0, 0, 1, 1)
    assert pair.chosen.token_ids == (1, 2, 3, 4, 5)
    assert pair.chosen.logprobs == (0.0, 0.0, 0.0, -0.4, -0.5)
    # b1 and b2 are both wrong; trunk and the other fork both right; branches of two forks are not compared
    assert built.dropped == {"no_contrast": 2, "no_fork": 2}


def test_a_branch_that_repeats_its_trunk_for_a_while_is_scored_where_they_part() -> None:
    of = group(
        (attempt("trunk", said(3, 4, 5)), 1.0),
        (branch("b", 3, said(3, 4, 6)), 0.0),
    )
    (pair,) = build("step_pairs", of).examples
    assert isinstance(pair, PreferencePair)
    assert pair.chosen.loss_mask == pair.rejected.loss_mask == (0, 0, 0, 0, 1)


def test_without_branches_equal_beginnings_count_only_when_asked_for() -> None:
    of = group((attempt("t", said(3, 4, 5)), 1.0), (attempt("u", said(3, 4, 6)), 0.0))
    assert build("step_pairs", of).dropped == {"no_fork": 1}
    assert ids(build("step_pairs", of, min_shared_tokens=2)) == ["t>u"]
    assert build("step_pairs", of, min_shared_tokens=3).dropped == {"no_fork": 1}


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        # the tool answered otherwise: nobody's merit
        ((said(3), seen(8), said(5)), (said(3), seen(9), said(6)), "observation_differs"),
        # one turn went on where the other had ended
        ((said(3), seen(8), said(5)), (said(3, 4),), "observation_differs"),
        ((said(3), seen(8)), (said(3), seen(8), said(5)), "nothing_after_fork"),
    ],
)
def test_what_does_not_part_in_the_policy_s_own_words_makes_no_pair(
    one: tuple[Turn, ...], other: tuple[Turn, ...], reason: str
) -> None:
    of = group((attempt("t", *one), 1.0), (attempt("u", *other), 0.0))
    built = build("step_pairs", of, min_shared_tokens=1)
    assert (built.examples, built.dropped) == ([], {reason: 1})


def test_a_branch_that_does_not_begin_like_its_trunk_is_no_branch() -> None:
    of = group((attempt("trunk", said(3, 4)), 1.0), (branch("b", 4, said(5, 4, 6)), 0.0))
    assert build("step_pairs", of).dropped == {"branch_differs": 1}


def test_pairs_are_capped_per_fork_and_per_prompt_at_random() -> None:
    trunk = (attempt("trunk", said(3, 4, 5)), 1.0)
    first = [(branch(f"a{i}", 3, said(3, 20 + i)), 0.0) for i in range(4)]
    second = [(branch(f"b{i}", 4, said(3, 4, 30 + i)), 0.0) for i in range(4)]
    of = group(trunk, *first, *second)
    built = build("step_pairs", of)
    assert [e.id[6] for e in built.examples] == ["a", "b"]
    assert built.dropped["cap"] == 6
    assert len({tuple(ids(build("step_pairs", of, seed))) for seed in range(20)}) > 5
    assert len(build("step_pairs", of, pairs_per_fork=4, max_pairs_per_prompt=5).examples) == 5


def test_the_label_of_the_step_can_decide_and_what_follows_it_is_cut_off() -> None:
    def steps(end: int, score: float) -> tuple[StepScore, ...]:
        span = Span(turn=0, start=1, end=end)
        return (StepScore(span=span, score=score, desirable=score >= 0.5),)

    of = group(
        (attempt("trunk", said(3, 4, 5), seen(9), said(6)), 0.0),
        (branch("good", 3, said(3, 7, 8, 10), seen(9), said(6)), 0.0),
        (branch("unsure", 3, said(3, 11)), 0.0),
        steps={"trunk": steps(3, 0.25), "good": steps(3, 1.0)},
    )
    built = build("step_pairs", of, by="step")
    (pair,) = built.examples
    assert isinstance(pair, PreferencePair)
    assert (pair.id, pair.margin) == ("good>trunk", 0.75)
    assert (pair.chosen.token_ids, pair.chosen.loss_mask) == ((1, 2, 3, 7, 8), (0, 0, 0, 1, 1))
    assert (pair.rejected.token_ids, pair.rejected.loss_mask) == ((1, 2, 3, 4, 5), (0, 0, 0, 1, 1))
    assert [(t.start, t.end) for t in pair.chosen.turns] == [(2, 5)]
    assert unusable_because(pair, 100) is None
    assert built.dropped == {"unlabelled_step": 2}


@st.composite
def conversations(draw: st.DrawFn) -> ScoredGroup:
    """Groups over few tokens, so that they share beginnings, observations and whole turns."""
    scored = []
    for index in range(draw(st.integers(2, 6))):
        turns = []
        for number in range(draw(st.integers(1, 4))):
            tokens = draw(st.lists(st.integers(3, 4), min_size=1, max_size=2))
            turns.append(said(*tokens) if number % 2 == 0 else seen(*tokens))
        parent = draw(st.sampled_from([None, "t0", "t1"]))
        fork = None if parent is None else Branch(parent=parent, at_token=draw(st.integers(2, 5)))
        scored.append(
            (attempt(f"t{index}", *turns, branch=fork), draw(st.sampled_from([0.0, 1.0])))
        )
    return group(*scored)


@given(conversations(), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_both_sides_of_a_step_pair_are_scored_after_the_same_tokens(
    of: ScoredGroup, seed: int
) -> None:
    built = build("step_pairs", of, seed, min_shared_tokens=1, pairs_per_fork=3)
    for pair in built.examples:
        assert isinstance(pair, PreferencePair)
        assert unusable_because(pair, 100) is None
        at = pair.chosen.loss_mask.index(1)
        assert at == pair.rejected.loss_mask.index(1) > len(of.trajectories[0].prompt_token_ids)
        assert pair.chosen.token_ids[at] != pair.rejected.token_ids[at]
        assert pair.margin > 0
    num_candidates = len(of.trajectories) - built.dropped["duplicate"]
    accounted = sum(n for r, n in built.dropped.items() if r not in ("duplicate", "alone"))
    assert accounted + len(built.examples) == num_candidates * (num_candidates - 1) // 2
