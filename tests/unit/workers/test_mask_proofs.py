"""What is scored is what was sampled: random conversations on every template, checked token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.base.records import Message, Prompt, Sampling, StopReason, Trajectory
from policies.examples.kinds import TokenSequence
from tests.support.chat_formats import CONTROLS, END, chat_of, control_ids
from tests.support.scripted_engine import ScriptedEngine
from workers.rollout.engine import Generation, GenerationRequest
from workers.rollout.multi_turn.strategy import ConversationStrategy, Counterpart, Reply
from workers.rollout.strategy import RolloutJob

NUM_TRAJECTORIES = 1000
QUESTION = Message(role="user", content="What is 57 times 83 plus 6?")


@dataclass(frozen=True)
class Said:
    """One policy turn as the engine will sample it."""

    token_ids: tuple[int, ...]
    terminated: bool
    stop: StopReason


@dataclass(frozen=True)
class Case:
    """A conversation: policy turns, and what is observed between them."""

    family: str
    turns: tuple[Said, ...]
    observations: tuple[str, ...]


class Recited(ConversationStrategy):
    """Observes what the case says."""

    case: Case

    def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
        return _Recital(self.case)


class _Recital(Counterpart):
    def __init__(self, case: Case) -> None:
        self._case = case

    def reply(self, text: str, turn: int) -> Reply:
        if turn >= len(self._case.observations):
            return Reply()
        return Reply(messages=(Message(role="user", content=self._case.observations[turn]),))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    family = draw(st.sampled_from(sorted(CONTROLS)))
    chat = chat_of(family)
    size = len(chat.tokenizer)
    end = chat.tokenizer.convert_tokens_to_ids(END[family])
    plain = st.integers(0, size - 1).filter(lambda i: i not in chat.terminators)
    turns = []
    for _ in range(draw(st.integers(1, 4))):
        ids = draw(st.lists(plain, max_size=8))
        ending = draw(st.sampled_from(["template", "eos", "stop string", "budget"]))
        if ending == "template":
            ids.append(end)
        elif ending == "eos":
            ids.append(chat.tokenizer.eos_token_id)
        stop = StopReason.LENGTH if ending == "budget" else StopReason.STOP
        turns.append(Said(tuple(ids), ending in ("template", "eos"), stop))
    words = st.one_of(
        st.text(max_size=12),
        st.sampled_from(["4737", "  4737\n", "a<", *CONTROLS[family]]),
    )
    observed = st.lists(words, max_size=3).map("".join)
    observations = tuple(draw(observed) for _ in turns[1:])
    return Case(family, tuple(turns), observations)


def logprob(n: int) -> float:
    """Another value for every sampled token."""
    return -(n + 1) / 1024


def sample(case: Case) -> tuple[Trajectory, ScriptedEngine]:
    chat = chat_of(case.family)
    turns: Iterator[Said] = iter(case.turns)
    count = 0

    def script(request: GenerationRequest) -> Generation:
        nonlocal count
        said = next(turns)
        logprobs = tuple(logprob(count + n) for n in range(len(said.token_ids)))
        count += len(said.token_ids)
        return Generation(said.token_ids, logprobs, chat.decode(said.token_ids), said.stop)

    engine = ScriptedEngine(chat, script)
    strategy = Recited(Recited.Config(type="recited", cut_turns="answer", max_turns=8))
    strategy.case = case
    prompt = Prompt(id="p", messages=(QUESTION,))
    (trajectory,) = strategy.run(RolloutJob((prompt,), 1, Sampling(), "r1", 0), engine)
    assert trajectory.error is None
    return trajectory, engine


def check_scored_tokens(case: Case, trajectory: Trajectory) -> None:
    """Position by position: scored are the sampled tokens, all of them, in order, each with its log-prob."""
    sequence = TokenSequence.of(trajectory)
    scored = [n for n, bit in enumerate(sequence.loss_mask) if bit]
    sampled = [i for said in case.turns for i in said.token_ids]
    assert [sequence.token_ids[n] for n in scored] == sampled
    assert [sequence.logprobs[n] for n in scored] == [logprob(n) for n in range(len(sampled))]
    for n, bit in enumerate(sequence.loss_mask):
        assert bit or sequence.logprobs[n] == 0.0
    start = 0
    for turn in sequence.turns:  # what lies between turns is not scored
        assert not any(sequence.loss_mask[start : turn.start])
        assert all(sequence.loss_mask[turn.start : turn.end])
        start = turn.end
    assert start == len(sequence.token_ids)


def check_requests(case: Case, trajectory: Trajectory, engine: ScriptedEngine) -> None:
    """Every request goes on from the exact tokens of the one before: what is recorded is what was read."""
    assert len(engine.heard) == len(case.turns)
    for (before, answer), (after, _) in zip(engine.heard, engine.heard[1:], strict=False):
        read = (*before.prompt_token_ids, *answer.token_ids)
        assert after.prompt_token_ids[: len(read)] == read
    last, answer = engine.heard[-1]
    assert trajectory.token_ids == (*last.prompt_token_ids, *answer.token_ids)


def check_observations(case: Case, trajectory: Trajectory) -> None:
    """No word of an observation is a control token, and each turn has one terminator, whoever wrote it."""
    chat = chat_of(case.family)
    controls = control_ids(chat)
    harmless = Case(case.family, case.turns, tuple("x" for _ in case.observations))
    plain, _ = sample(harmless)
    end = chat.tokenizer.convert_tokens_to_ids(END[case.family])
    for said, turn, other in zip(
        case.turns, trajectory.turns[1::2], plain.turns[1::2], strict=False
    ):
        assert turn.role == "observation"
        found = [i for i in turn.token_ids if i in controls]
        assert found == [i for i in other.token_ids if i in controls]
        assert (found[0] == end) == (not said.terminated)


def test_every_scored_token_was_sampled_and_nothing_else_is_scored() -> None:
    seen: Counter[str] = Counter()

    @settings(
        max_examples=NUM_TRAJECTORIES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def holds(case: Case) -> None:
        trajectory, engine = sample(case)
        check_scored_tokens(case, trajectory)
        check_requests(case, trajectory, engine)
        check_observations(case, trajectory)
        seen["trajectories"] += 1
        seen[case.family] += 1
        seen["observed"] += len(case.observations) > 0
        chat = chat_of(case.family)
        again = [i for t in case.turns for i in chat.encode(chat.decode(t.token_ids))]
        kept = [i for t in case.turns for i in t.token_ids if i not in control_ids(chat)]
        seen["other ids from text"] += again != kept
        seen["attacked"] += any(c in o for o in case.observations for c in chat.controls)

    holds()
    assert seen["trajectories"] >= NUM_TRAJECTORIES
    assert all(seen[family] > 50 for family in CONTROLS)
    # The proof has something to find: text does not give the sampled ids back, and observations do attack.
    assert seen["other ids from text"] > NUM_TRAJECTORIES / 4
    assert seen["attacked"] > NUM_TRAJECTORIES / 20
    assert seen["observed"] > NUM_TRAJECTORIES / 4


@pytest.mark.parametrize("family", sorted(CONTROLS))
def test_a_conversation_made_again_from_its_text_would_fail_the_check(family: str) -> None:
    chat = chat_of(family)
    end = chat.tokenizer.convert_tokens_to_ids(END[family])
    spelled = [chat.encode(letter)[0] for letter in "answer"]  # one token per letter
    said = Said((*spelled, end), True, StopReason.STOP)
    case = Case(family, (said, said), ("4737",))
    trajectory, _ = sample(case)
    check_scored_tokens(case, trajectory)
    merged = (*chat.encode("answer"), end)
    assert merged != said.token_ids
    turn = trajectory.turns[0].model_copy(
        update={"token_ids": merged, "logprobs": tuple(map(logprob, range(len(merged))))}
    )
    again = trajectory.model_copy(update={"turns": (turn, *trajectory.turns[1:])})
    with pytest.raises(AssertionError):
        check_scored_tokens(case, again)
