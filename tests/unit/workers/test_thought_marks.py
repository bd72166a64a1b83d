"""Thoughts are known from the template and from tokens: on records, to partners, and for every chat format."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from policies.base.attempt_answer import answer_of
from policies.base.records import Sampling, StopReason, Trajectory, TrajectoryStatus, Turn
from tests.support.chat_formats import chat_of
from tests.unit.workers.test_tool_loop import Counting, loop, run
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.chat.thought_marks import opened_before, spoken_text, with_thought_marks
from workers.rollout.chat.tokenizer_chat import TokenizerChat

SPECIAL = (
    "[INST]",
    "[/INST]",
    "</s>",
    "[THINK]",
    "[/THINK]",
    "<|start|>",
    "<|end|>",
    "<|channel|>",
    "<|message|>",
    "<|return|>",
)


@pytest.fixture(scope="module")
def special() -> TokenizerChat:
    """A format whose marks of thoughts are control tokens, which its decoded texts leave out."""
    built = Tokenizer(BPE())
    built.pre_tokenizer = ByteLevel(add_prefix_space=False)
    built.decoder = ByteDecoder()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    built.train_from_iterator(["a b"], trainer)
    built.add_special_tokens([AddedToken(c, normalized=False, special=True) for c in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, eos_token="</s>")
    tokenizer.chat_template = "[INST]{{ messages[0].content }}[/INST]"
    return TokenizerChat(tokenizer, [tokenizer.convert_tokens_to_ids("<|return|>")])


def sampled(chat: ChatFormat, prompt: str, written: str) -> Trajectory:
    ids = chat.encode(written)
    turn = Turn(
        role="policy",
        token_ids=ids,
        text=chat.decode(ids),
        logprobs=(-0.5,) * len(ids),
        stop_reason=StopReason.STOP,
    )
    return Trajectory(
        id="r1.p.0",
        prompt_id="p",
        sample_index=0,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=chat.encode(prompt),
        turns=(turn,),
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("[THINK]54?[/THINK]It is 56.</s>", "It is 56."),
        ("[THINK]It is 56.</s>", ""),
        (
            "<|channel|>analysis<|message|>54?<|end|><|start|>assistant<|channel|>final<|message|>"
            "It is 56.<|return|>",
            "It is 56.",
        ),
        ("<|channel|>analysis<|message|>It is 56.<|return|>", ""),
        ("It is 56.</s>", "It is 56."),
    ],
)
def test_marks_that_are_control_tokens_are_noted_on_the_turn(
    special: TokenizerChat, written: str, answer: str
) -> None:
    attempt = sampled(special, "[INST]7 times 8?[/INST]", written)
    noted = with_thought_marks(attempt, special)
    assert answer_of(noted).text == answer
    assert noted.completion == attempt.completion


def test_a_mark_that_the_template_wrote_is_noted_on_the_turn() -> None:
    chat = chat_of("thought_opened")
    prompt = "<|im_start|>user\n7 times 8?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    noted = with_thought_marks(sampled(chat, prompt, "54? No.</think>It is 56."), chat)
    assert noted.turns[0].opened_thought == "<think>"
    assert answer_of(noted).text == "It is 56."
    unfinished = with_thought_marks(sampled(chat, prompt, "It is 56."), chat)
    assert answer_of(unfinished).missing == "the thought is not finished"


def test_what_a_user_writes_of_marks_opens_nothing() -> None:
    chat = chat_of("chatml")
    for said in ("Think in <think> tags", "End with <think>"):
        prompt = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
        attempt = sampled(chat, prompt, "It is 56.")
        assert with_thought_marks(attempt, chat) is attempt


def test_marks_of_every_turn_of_a_conversation_are_found() -> None:
    chat = chat_of("thought_opened")
    first = sampled(chat, "<|im_start|>assistant\n<think>\n", "a</think>b<|im_end|>")
    seen = chat.encode("\n<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n<think>\n")
    observed = Turn(
        role="observation", token_ids=seen, text="go on", stop_reason=StopReason.OBSERVATION
    )
    both = first.model_copy(update={"turns": (*first.turns, observed, *first.turns)})
    noted = with_thought_marks(both, chat)
    assert [turn.opened_thought for turn in noted.turns] == ["<think>", "", "<think>"]


def test_records_without_thoughts_are_written_as_they_were() -> None:
    chat = chat_of("chatml")
    turn = with_thought_marks(sampled(chat, "Q", "It is 56."), chat).turns[0]
    assert not {"opened_thought", "marked_text"} & turn.model_dump().keys()
    assert Turn.model_validate(turn.model_dump() | {"marked_text": None}) == turn


def test_partners_hear_what_is_said_and_not_what_is_thought(special: TokenizerChat) -> None:
    ids = special.encode("[THINK]call a[/THINK]call b</s>")
    assert spoken_text(special.decode(ids), ids, special.encode("[/INST]"), special) == "call b"
    assert spoken_text("call b", special.encode("call b"), special.encode("[THINK]"), special) == ""
    assert opened_before(special.encode("[/INST][THINK]"), special) == "[THINK]"


def test_a_call_inside_a_thought_is_not_run() -> None:
    Counting.opened.clear()
    (thought,) = run(loop(), "<think>\n!a 5\n</think>\nit is 5")
    assert [turn.role for turn in thought.turns] == ["policy"]
    assert Counting.opened == []
    (called,) = run(loop(), "<think>\nlet me see\n</think>\n!a 5", "it is 5")
    assert called.turns[1].text == "5=1"
    (unfinished,) = run(loop(), "<think>\n!a 5")
    assert answer_of(unfinished).missing


def test_a_call_inside_a_thought_is_run_where_partners_read_everything() -> None:
    (told,) = run(loop(partner_reads="everything"), "<think>\n!a 5\n</think>", "it is 5")
    assert told.turns[1].text == "5=1"


def test_an_attempt_whose_last_turn_is_a_call_has_not_answered() -> None:
    (attempt,) = run(loop(max_turns=1), "it is 56\n!a 56")
    assert answer_of(attempt).missing == "the attempt ended with a tool call"
