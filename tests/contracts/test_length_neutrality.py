"""No preference builder teaches length: where scores say nothing of length, the sides it makes are equally long."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

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
from policies.base.seeds import derive_rng
from policies.examples.builder import PREFERENCES, Built, PreferenceBuilder
from policies.examples.kinds import PreferencePair, UnpairedExample

NAMES = list(PREFERENCES.members())
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "step_pairs": [{"min_shared_tokens": 1}],
    "all_pairs": [{}, {"max_pairs_per_prompt": 1}],
    "right_vs_wrong": [{}, {"pairs_per_prompt": 1}],
    "thresholded": [{}, {"max_per_class": 1}, {"max_per_prompt": 2}],
    "imitate": [{}, {"max_per_prompt": 1}],
}
"""Settings under which a builder has to choose among equals; one without an entry is tried as it comes."""
CASES = [(name, config) for name in NAMES for config in SETTINGS.get(name, [{}])]
NUM_GROUPS = 300
LONGEST = 20


@cache
def groups_of(scores: tuple[float, ...]) -> list[ScoredGroup]:
    """Groups with these scores, made once for all builders."""
    rng = derive_rng("length", scores)
    return [group_of(scores, rng) for _ in range(NUM_GROUPS)]


def group_of(scores: Sequence[float], rng: random.Random) -> ScoredGroup:
    """Attempts with these scores in a random order, of random lengths; all begin alike and then differ."""
    shuffled = rng.sample(list(scores), len(scores))
    trajectories, feedback = [], []
    for index, score in enumerate(shuffled):
        ids = (5, 100 + index, *[6] * rng.randrange(LONGEST))
        turn = Turn(
            role="policy",
            token_ids=ids,
            text="",
            logprobs=(-1.0,) * len(ids),
            stop_reason=StopReason.STOP,
        )
        trajectories.append(
            Trajectory(
                id=f"t{index}",
                prompt_id="p",
                sample_index=index,
                policy_version=0,
                policy_digest="d",
                prompt_token_ids=(1,),
                turns=(turn,),
                status=TrajectoryStatus.COMPLETE,
                sampling=Sampling(),
                derived_from=f"t{index - 1}" if index % 2 else None,
            )
        )
        feedback.append(Feedback(trajectory_id=f"t{index}", score=score, desirable=score >= 0.5))
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),))
    return ScoredGroup(prompt=prompt, trajectories=tuple(trajectories), feedback=tuple(feedback))


def length_gap(group: ScoredGroup, built: Built) -> float | None:
    """Tokens by which the good side of the examples is longer than the bad one, or than all attempts."""
    good: list[int] = []
    bad: list[int] = []
    for example in built.examples:
        if isinstance(example, PreferencePair):
            good.append(len(example.chosen.token_ids))
            bad.append(len(example.rejected.token_ids))
        elif isinstance(example, UnpairedExample):
            (good if example.desirable else bad).append(len(example.sequence.token_ids))
        else:
            good.append(len(example.sequences()[0].token_ids))
            bad = [len(t.token_ids) for t in group.trajectories]
    return statistics.mean(good) - statistics.mean(bad) if good and bad else None


SCORES = {
    "1 of 8 right": [1.0] + [0.0] * 7,
    "4 of 8 right": [1.0] * 4 + [0.0] * 4,
    "7 of 8 right": [1.0] * 7 + [0.0],
    "three levels": [1.0] * 2 + [0.5] * 5 + [0.0],
}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize(("name", "config"), CASES, ids=[f"{n} {c}" for n, c in CASES])
def test_sides_are_equally_long_when_scores_say_nothing_of_length(
    name: str, config: dict[str, Any], scores: list[float]
) -> None:
    builder: PreferenceBuilder = create(PREFERENCES.parse({"type": name, **config}))
    gaps = [
        gap
        for index, group in enumerate(groups_of(tuple(scores)))
        if (gap := length_gap(group, builder.build(group, derive_rng(index)))) is not None
    ]
    assert len(gaps) > NUM_GROUPS / 6
    noise = statistics.stdev(gaps) / len(gaps) ** 0.5
    assert noise < LONGEST / 12, "too few examples to see a bias"
    assert abs(statistics.mean(gaps)) < 4 * noise


@pytest.mark.parametrize(("name", "config"), CASES, ids=[f"{n} {c}" for n, c in CASES])
def test_where_an_attempt_stands_in_its_group_decides_nothing(
    name: str, config: dict[str, Any]
) -> None:
    """Each of four equals is taken about as often, whatever its place."""
    builder: PreferenceBuilder = create(PREFERENCES.parse({"type": name, **config}))
    times = {f"t{i}": 0 for i in range(8)}
    for index, group in enumerate(groups_of((1.0,) * 8)):
        right = {t.id for t in group.trajectories if t.sample_index % 2}
        feedback = tuple(
            f.model_copy(
                update={
                    "score": float(f.trajectory_id in right),
                    "desirable": f.trajectory_id in right,
                }
            )
            for f in group.feedback
        )
        built = builder.build(
            group.model_copy(update={"feedback": feedback}), derive_rng("draw", index)
        )
        for example in built.examples:
            if isinstance(example, PreferencePair):
                times[example.chosen.trajectory_id] += 1
                times[example.rejected.trajectory_id] += 1
            else:
                times[example.sequences()[0].trajectory_id] += 1
    for side in (1, 0):
        taken = [number for i, number in times.items() if int(i[1:]) % 2 == side and number]
        if taken:
            expected = statistics.mean(taken)
            assert len(taken) == 4
            assert max(abs(n - expected) for n in taken) < 6 * max(expected**0.5, 1)
