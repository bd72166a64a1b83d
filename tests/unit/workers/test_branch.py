"""The branch strategy: continuations from the exact tokens of a trunk, and K attempts whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from policies.base.component import create
from policies.base.records import Message, PolicyVersion, Prompt, Sampling, StopReason, Trajectory
from policies.base.seeds import derive_rng
from policies.storage.fake_model import write_fake_model
from tests.support.training_cases import version
from workers.rollout.engine import ENGINES, BatchEngine, Generation, GenerationRequest
from workers.rollout.engines.fake import TERMINATOR, FakeChat
from workers.rollout.strategies.branch import BranchStrategy
from workers.rollout.strategy import STRATEGIES, RolloutJob

SERVING = PolicyVersion(number=2, round=2, parent=1, path="p", digest="d")


class Storyteller(BatchEngine):
    """Writes the same number of sentences each time, of words that follow the seed; keeps what it was asked."""

    def __init__(self, sentences: int, *, max_context: int | None = None) -> None:
        super().__init__()
        self.chat = FakeChat()
        self.serving = SERVING
        self.max_context = max_context
        self.sentences = sentences
        self.asked: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.asked += requests
        return [self._one(request) for request in requests]

    def _one(self, request: GenerationRequest) -> Generation:
        rng = derive_rng(request.seed)
        so_far = self.chat.decode(request.prompt_token_ids).split("<assistant>")[-1].count(".")
        words = [rng.choice(["cat", "dog", "sun", "sea"]) for _ in range(self.sentences - so_far)]
        text = "".join(f"A {word}. " for word in words).strip()
        ids = [*text.encode(), TERMINATOR][: request.sampling.max_tokens]
        stop = StopReason.STOP if ids[-1] == TERMINATOR else StopReason.LENGTH
        logprobs = tuple(-rng.random() for _ in ids)
        return Generation(tuple(ids), logprobs, self.chat.decode(ids), stop)


def prompts(number: int = 2) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(id=f"p{n}", messages=(Message(role="user", content=f"Story {n}"),))
        for n in range(number)
    )


def run(
    engine: BatchEngine, samples: int, max_tokens: int = 400, number: int = 2, **settings: Any
) -> list[Trajectory]:
    built: BranchStrategy = create(STRATEGIES.parse({"type": "branch", **settings}))
    job = RolloutJob(prompts(number), samples, Sampling(max_tokens=max_tokens), "r1", seed=4)
    return list(built.run(job, engine))


def test_a_continuation_repeats_its_trunk_up_to_the_fork_and_only_there() -> None:
    found = run(Storyteller(5), samples=10)
    by_id = {t.id: t for t in found}
    children = [t for t in found if t.branch is not None]
    assert len(children) == 16
    for child in children:
        assert child.branch is not None
        trunk = by_id[child.branch.parent]
        assert trunk.branch is None
        assert trunk.prompt_id == child.prompt_id
        at = child.branch.at_token
        assert child.token_ids[:at] == trunk.token_ids[:at]
        assert child.logprobs[:at] == trunk.logprobs[:at]
        assert at > len(child.prompt_token_ids)
        assert child.logprobs[at:] != trunk.logprobs[at:]
        assert child.turns[0].text == bytes(child.turns[0].token_ids[:-1]).decode()
        assert child.turns[0].text.count(".") == 5
    assert any(
        child.token_ids != by_id[child.branch.parent].token_ids
        for child in children
        if child.branch
    )


def test_forks_lie_behind_sentences() -> None:
    for child in run(Storyteller(5), samples=10):
        if child.branch is not None:
            shared = bytes(child.token_ids[len(child.prompt_token_ids) : child.branch.at_token])
            assert shared.decode().endswith(". ")


def test_the_engine_is_asked_for_exactly_what_was_sampled_and_the_rest_of_the_budget() -> None:
    engine = Storyteller(5)
    found = run(engine, samples=10, max_tokens=60)
    by_seed = {r.seed: r for r in engine.asked}
    job = RolloutJob(prompts(), 10, Sampling(), "r1", seed=4)
    for child in found:
        at = child.branch.at_token if child.branch else len(child.prompt_token_ids)
        prompt = next(p for p in prompts() if p.id == child.prompt_id)
        request = by_seed[job.seed_of(prompt, child.sample_index)]
        assert request.prompt_token_ids == child.token_ids[:at]
        assert request.sampling.max_tokens == 60 - (at - len(child.prompt_token_ids))
        assert len(child.turns[0].token_ids) <= 60


@given(
    samples=st.integers(1, 20),
    forks=st.integers(1, 4),
    continuations=st.integers(1, 4),
    sentences=st.integers(1, 6),
    at=st.sampled_from(["sentence", "line", "token"]),
)
def test_there_are_exactly_k_attempts_with_indices_in_order(
    samples: int, forks: int, continuations: int, sentences: int, at: str
) -> None:
    settings: dict[str, Any] = {"forks": forks, "continuations": continuations, "at": at}
    found = run(Storyteller(sentences), samples, **settings)
    assert [(t.prompt_id, t.sample_index) for t in found] == [
        (p.id, k) for p in prompts() for k in range(samples)
    ]
    per_fork: dict[tuple[str, int], int] = {}
    for each in found:
        if each.branch is not None:
            key = (each.branch.parent, each.branch.at_token)
            per_fork[key] = per_fork.get(key, 0) + 1
    assert all(count <= continuations for count in per_fork.values())
    for parent in {parent for parent, _ in per_fork}:
        assert sum(1 for trunk, _ in per_fork if trunk == parent) <= forks


def test_trunks_with_no_place_to_fork_are_joined_by_whole_attempts() -> None:
    found = run(Storyteller(1), samples=10)
    assert [t.branch for t in found] == [None] * 20
    assert len({t.logprobs for t in found}) == 20


def test_by_tokens_the_forks_are_spread_evenly() -> None:
    (trunk, *children) = run(
        Storyteller(5), samples=4, number=1, at="token", forks=3, continuations=1
    )
    written = len(trunk.turns[0].token_ids) - 1
    at = [c.branch.at_token - len(c.prompt_token_ids) for c in children if c.branch]
    assert at == [written // 4, written * 2 // 4, written * 3 // 4]


def test_nothing_is_forked_where_only_the_terminator_would_be_left() -> None:
    for child in run(Storyteller(3), samples=12, forks=4, at="token"):
        if child.branch is not None:
            parent_ids = child.token_ids[: child.branch.at_token]
            assert TERMINATOR not in parent_ids
            assert len(child.token_ids) - child.branch.at_token > 1


def test_a_continuation_that_no_longer_fits_is_an_error_of_its_own() -> None:
    engine = Storyteller(5)
    rendered = len(engine.render(prompts()[0].messages))
    engine.max_context = rendered + 12
    found = run(engine, samples=5, number=1)
    assert len(found) == 5
    assert all(len(r.prompt_token_ids) < engine.max_context for r in engine.asked)


def test_the_fake_engine_can_be_forked(tmp_path: Path) -> None:
    policy = version(write_fake_model(tmp_path / "model", skill=0.5), number=3)
    engine = create(ENGINES.parse("fake"), policy=policy)
    found = run(engine, samples=6, at="token")
    assert sum(t.branch is not None for t in found) > 0
    assert {t.policy_version for t in found} == {3}
