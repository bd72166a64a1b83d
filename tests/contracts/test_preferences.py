"""What every preference builder promises, found by family: a new file is tested with no edit here."""

from __future__ import annotations

import json
import pickle
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
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
from policies.examples.kind import shipped_names
from policies.examples.kinds import PreferencePair, SupervisedExample, UnpairedExample
from tests.support.heavy_imports import loaded_by
from workers.training.batches.plan import unusable_because

NAMES = list(PREFERENCES.members())
SETTINGS: dict[str, dict[str, Any]] = {"step_pairs": {"min_shared_tokens": 1}}
"""Settings with which a builder makes something of groups without branches."""

RECORDS: dict[str, type[Any]] = {
    "pair": PreferencePair,
    "unpaired": UnpairedExample,
    "supervised": SupervisedExample,
}
HEAVY = ("torch", "vllm", "ray", "mlflow", "trl", "datasets", "pyarrow")


@st.composite
def groups(draw: st.DrawFn) -> ScoredGroup:
    """Groups with equal sequences, failures, truncation, other prefixes and every score."""
    trajectories, feedback = [], []
    for index in range(draw(st.integers(0, 8))):
        status = draw(st.sampled_from(TrajectoryStatus))
        ids = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
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
                prompt_token_ids=draw(st.sampled_from([(1,), (1,), (1,), (2,)])),
                turns=(turn,),
                status=status,
                sampling=Sampling(),
                derived_from=draw(st.sampled_from([None, "t0", "t1"])),
            )
        )
        score = draw(st.sampled_from([None, 0.0, 0.25, 0.5, 0.75, 1.0]))
        feedback.append(
            Feedback(
                trajectory_id=f"t{index}",
                score=score,
                desirable=None if score is None else score >= 0.5,
                unusable_because="all_abstained" if score is None else None,
            )
        )
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),))
    return ScoredGroup(prompt=prompt, trajectories=tuple(trajectories), feedback=tuple(feedback))


def build(name: str, group: ScoredGroup, seed: int = 0) -> Built:
    config = PREFERENCES.parse({"type": name, **SETTINGS.get(name, {})})
    built: Built = create(config).build(group, random.Random(seed))
    return built


def test_there_are_builders_to_test() -> None:
    shipped = {"right_vs_wrong", "best_vs_worst", "all_pairs", "thresholded", "imitate"}
    assert {*shipped, "step_pairs", "revisions"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@given(group=groups(), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_examples_can_be_learned_from_and_traced(name: str, group: ScoredGroup, seed: int) -> None:
    owner = PREFERENCES.resolve(name)
    kind = owner.kind_name
    assert kind in shipped_names()
    assert kind == owner.kind.kind_name
    built = build(name, group, seed)
    usable = {
        t.id: t
        for t, f in zip(group.trajectories, group.feedback, strict=True)
        if f.score is not None and t.status is not TrajectoryStatus.ERROR
    }
    assert len({example.id for example in built.examples}) == len(built.examples)
    for example in built.examples:
        assert type(example) is RECORDS[kind]
        assert example.prompt_id == group.prompt.id
        if isinstance(example, PreferencePair):
            sequences = [example.chosen, example.rejected]
            assert example.margin > 0
            assert example.chosen.token_ids != example.rejected.token_ids
            assert len({usable[s.trajectory_id].prompt_token_ids for s in sequences}) == 1
        else:
            sequences = [*example.sequences()]
        assert unusable_because(example, max_length=1000) is None
        for sequence in sequences:
            assert sequence.token_ids == usable[sequence.trajectory_id].token_ids
            assert any(sequence.loss_mask)


@pytest.mark.parametrize("name", NAMES)
@given(group=groups(), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_the_same_group_and_seed_give_the_same_examples(
    name: str, group: ScoredGroup, seed: int
) -> None:
    before = group.model_dump_json()
    first, second = build(name, group, seed), build(name, group, seed)
    assert (first.examples, first.dropped) == (second.examples, second.dropped)
    assert group.model_dump_json() == before


@pytest.mark.parametrize("name", NAMES)
@given(group=groups())
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_gives_no_example_is_counted(name: str, group: ScoredGroup) -> None:
    built = build(name, group)
    assert all(count > 0 for count in built.dropped.values())
    if group.trajectories and not built.examples:
        assert built.dropped
    json.dumps(built.dropped)


@pytest.mark.parametrize("name", NAMES)
@given(group=groups(), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_cut_never_wins(name: str, group: ScoredGroup, seed: int) -> None:
    built = build(name, group, seed)
    cut = {t.id for t in group.trajectories if t.status is TrajectoryStatus.TRUNCATED}
    for example in built.examples:
        if isinstance(example, PreferencePair):
            assert example.chosen.trajectory_id not in cut
        elif not isinstance(example, UnpairedExample) or example.desirable:
            assert example.sequences()[0].trajectory_id not in cut


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_json_and_pickle(name: str) -> None:
    config = PREFERENCES.parse({"type": name, "drop_truncated": True, **SETTINGS.get(name, {})})
    assert PREFERENCES.parse(config.model_dump(mode="json")) == config
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValueError, match="no_such_setting"):
        PREFERENCES.parse({"type": name, "no_such_setting": 1})


def test_importing_builders_loads_nothing_heavy() -> None:
    code = (
        "from policies.examples.builder import PREFERENCES\n"
        "for name in PREFERENCES.members(): PREFERENCES.resolve(name)"
    )
    assert loaded_by(code, HEAVY) == []
