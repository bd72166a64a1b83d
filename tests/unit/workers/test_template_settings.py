"""What a run tells its chat template: one date, arguments, a BOS token; and where a turn ends and a call begins."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.run_config import RunConfig
from orchestrator.runs.folder import RunFolder, template_date
from policies.base.errors import RolloutError, boundary
from policies.base.records import Message, StopReason
from tests.support.scripted_engine import ScriptedEngine
from tests.support.template_folders import chat_with, of_packages, of_tests
from workers.rollout.call_formats.hermes import Hermes
from workers.rollout.chat import tokenizer_chat
from workers.rollout.chat.call_arguments import wants_text, with_arguments
from workers.rollout.chat.chat_settings import ChatSettings
from workers.rollout.chat.tokenizer_chat import TokenizerChat
from workers.rollout.chat.transcript import Transcript
from workers.rollout.engine import Generation, GenerationRequest

ASK = (Message(role="user", content="How much?"),)
NEXT = Message(role="user", content="And now?")
CLOCK = of_tests("chatml").replace(
    "{%- for", "<|im_start|>system\nToday is {{ strftime_now('%d %B %Y') }}.<|im_end|>\n{%- for", 1
)
SWITCH = of_tests("chatml").replace(
    "<|im_start|>assistant\n",
    "<|im_start|>assistant\n{% if thinking is defined and not thinking %}<think>\n\n</think>\n{% endif %}",
)
OWN_DAY = "{% if not date_string is defined %}{% set date_string = 'long ago' %}{% endif %}{{ date_string }}"
ROLES_ARE_TOKENS = """\
{%- for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>
{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""


class Tomorrow(datetime):
    """A clock that is a day ahead of the real one."""

    @classmethod
    def now(cls, tz: Any = None) -> Tomorrow:
        real = datetime.now(tz)
        return cls(real.year + 1, 1, 1, tzinfo=tz)


def opened(chat: TokenizerChat) -> str:
    return chat.text(ASK, generation_prompt=True)


def ids_of(chat: TokenizerChat, *tokens: str) -> tuple[int, ...]:
    return tuple(chat.tokenizer.convert_tokens_to_ids(list(tokens)))


def test_a_conversation_that_outlasts_a_day_goes_on_in_the_day_it_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = chat_with(CLOCK)
    transcript = Transcript(chat, ASK, rewritten_history="refuse")
    before = opened(chat)
    transcript.said(chat.encode("5<|im_end|>"), "5")
    monkeypatch.setattr(tokenizer_chat, "datetime", Tomorrow)
    assert opened(chat_with(CLOCK)) != before, "the clock is really read"
    assert opened(chat) == before
    transcript.observed((NEXT,))


def test_the_date_of_a_run_is_told_whatever_day_it_is() -> None:
    chat = chat_with(CLOCK, ChatSettings(date="2024-02-29"))
    assert "Today is 29 February 2024." in opened(chat)


@pytest.mark.parametrize(
    ("template", "given", "shown"),
    [
        ("{{ date_string }}", False, "29 Feb 2024"),
        (OWN_DAY, False, "long ago"),
        (OWN_DAY, True, "29 Feb 2024"),
        ("{{ date_string | default('long ago') }}", False, "long ago"),
    ],
)
def test_a_template_with_a_fixed_day_of_its_own_keeps_it_unless_told_another(
    template: str, given: bool, shown: str
) -> None:
    chat = chat_with(
        template + of_tests("chatml"), ChatSettings(date="2024-02-29", date_is_given=given)
    )
    assert opened(chat).startswith(shown)


@pytest.mark.parametrize("name", ["trl:llama3_2", "trl:gptoss"])
def test_templates_in_use_that_read_the_clock_give_the_same_prompt_on_another_day(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = of_packages()[name]
    first = opened(chat_with(template, ChatSettings(date="2024-02-29")))
    monkeypatch.setattr(tokenizer_chat, "datetime", Tomorrow)
    assert opened(chat_with(template, ChatSettings(date="2024-02-29"))) == first
    assert "2024" in first


def test_a_resumed_run_tells_the_date_on_which_it_was_begun(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    old = {"created_at": "2025-12-31T23:59:58.5+00:00"}
    folder.identity.write_text(json.dumps(old))
    assert template_date(folder) == "2025-12-31", "a run of before the date was recorded"
    folder.identity.write_text(json.dumps({**old, "template_date": "2024-02-29"}))
    assert template_date(folder) == "2024-02-29"


def test_arguments_reach_the_template() -> None:
    chat = chat_with(SWITCH, ChatSettings(template_arguments={"thinking": False}))
    assert opened(chat).endswith("<|im_start|>assistant\n<think>\n\n</think>\n")
    assert opened(chat_with(SWITCH)).endswith("<|im_start|>assistant\n")


def settings_with(**rollout: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "policy": {"model": "m"},
            "prompts": {
                "train": {"type": "arithmetic", "split": "train"},
                "held_out": {"type": "arithmetic", "split": "held_out"},
            },
            "rollout": rollout,
            "verifiers": [{"type": "numeric_match"}],
            "preferences": {"type": "best_vs_worst"},
        }
    )


def test_what_the_config_sets_is_what_the_chat_format_is_told() -> None:
    told = settings_with(
        template_arguments={"enable_thinking": False},
        template_date="2024-02-29",
        template_bos=True,
        template_roles="user_only",
        template_tools="text",
    ).rollout.chat("2026-11-30")
    assert told == ChatSettings(
        template_arguments={"enable_thinking": False},
        date="2024-02-29",
        date_is_given=True,
        bos=True,
        roles="user_only",
        tools="text",
    )
    assert settings_with().rollout.chat("2026-11-30") == ChatSettings(date="2026-11-30")


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"template_arguments": {"messages": []}}, "messages cannot be set"),
        ({"template_arguments": {"add_generation_prompt": False}}, "cannot be set"),
        ({"template_arguments": {"enable thinking": False}}, "no name of a template's variable"),
        ({"template_date": "2026-13-01"}, "is no date"),
        ({"template_date": "20261301"}, "YYYY-MM-DD"),
    ],
)
def test_arguments_and_dates_that_cannot_be_told_are_refused_by_the_config(
    rollout: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings_with(**rollout)


def test_bos_is_what_the_template_writes_unless_it_is_asked_for() -> None:
    template = of_tests("chatml")
    plain = chat_with(template, adds_bos=True)
    assert plain.added_bos == "<s>"
    assert not plain.writes_bos
    asked = chat_with(template, ChatSettings(bos=True), adds_bos=True)
    (bos,) = ids_of(asked, "<s>")
    assert asked.encode(opened(asked)) == (bos, *plain.encode(opened(plain)))
    twice = chat_with("<s>" + template, ChatSettings(bos=True), adds_bos=True)
    assert list(twice.encode(opened(twice))).count(bos) == 1
    assert twice.writes_bos
    assert chat_with(template).added_bos == ""
    transcript = Transcript(asked, ASK, rewritten_history="refuse")
    transcript.said(asked.encode("5<|im_end|>"), "5")
    assert bos not in transcript.observed((NEXT,))


@pytest.mark.parametrize(
    ("last", "role", "follows"),
    [
        ("<|endoftext|>", "user", "<|user|>\nAnd now?<|assistant|>\n"),
        ("<|endoftext|>", "tool", "<|observation|>\nAnd now?<|assistant|>\n"),
        ("<|user|>", "user", "\nAnd now?<|assistant|>\n"),
        ("<|observation|>", "tool", "\nAnd now?<|assistant|>\n"),
        ("<|user|>", "tool", "<|observation|>\nAnd now?<|assistant|>\n"),
        ("", "user", "<|user|>\nAnd now?<|assistant|>\n"),
    ],
)
def test_the_opening_of_the_next_message_is_written_though_it_is_an_end_of_sequence_too(
    last: str, role: str, follows: str
) -> None:
    tokenizer = chat_with(ROLES_ARE_TOKENS, eos="<|endoftext|>").tokenizer
    ends = tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>", "<|endoftext|>"])
    chat = TokenizerChat(tokenizer, ends)
    assert chat.terminators == frozenset(ends)
    transcript = Transcript(chat, ASK)
    transcript.said(chat.encode(f"5{last}"), "5")
    observed = transcript.observed((Message(role=role, content="And now?"),))
    assert tokenizer.decode(list(observed)) == follows


def test_another_end_of_sequence_than_the_templates_own_closes_a_turn_as_well() -> None:
    chat = chat_with(of_tests("chatml"), eos="<|endoftext|>")
    transcript = Transcript(chat, ASK)
    transcript.said(chat.encode("5<|endoftext|>"), "5")
    shown = chat.tokenizer.decode(list(transcript.observed((NEXT,))))
    assert shown == "\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"


def test_a_call_in_tags_that_are_control_tokens_is_read() -> None:
    chat = chat_with(of_tests("chatml"))
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "2"}}</tool_call>'
    ids = chat.encode(f"{call}<|im_end|>")
    assert set(ids_of(chat, "<tool_call>", "</tool_call>")) <= set(ids)
    assert chat.decode(ids) == call
    (parsed,) = Hermes(Hermes.Config(type="hermes")).parse(chat.decode(ids)).calls
    assert parsed.tool == "calculator"

    def silent(request: GenerationRequest) -> Generation:
        raise AssertionError("nothing is sampled")

    without_tags = Generation(ids, (0.0,) * len(ids), '{"name": ...}', StopReason.STOP)
    assert ScriptedEngine(chat, silent).worded(without_tags).text == call


def test_tokens_that_open_close_or_pad_messages_are_no_text() -> None:
    chat = chat_with(of_tests("chatml"), eos="<|endoftext|>")
    for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>"):
        assert chat.decode(chat.encode(f"a{token}b")) == "ab", token


CALLS_OF = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}{{ SHOWN }}{% endfor %}<|im_end|>
{% endfor %}"""


@pytest.mark.parametrize(
    ("shown", "as_text", "written"),
    [
        ("call.function.arguments", True, '{"a": [1, "x"]}'),
        ("call.function.arguments | tojson", False, '{"a": [1, "x"]}'),
        ("call.function.arguments | items | first | first", False, "a"),
        (
            "(call.function.arguments | tojson) if call.function.arguments is mapping else call.function.arguments",
            False,
            '{"a": [1, "x"]}',
        ),
    ],
)
@pytest.mark.parametrize("given", [{"a": [1, "x"]}, '{"a": [1, "x"]}'])
def test_arguments_of_earlier_calls_are_written_as_json_by_either_kind_of_template(
    shown: str, as_text: bool, written: str, given: Any
) -> None:
    tokenizer = chat_with(CALLS_OF.replace("SHOWN", shown)).tokenizer

    def render(messages: list[dict[str, object]]) -> str:
        with boundary(RolloutError, "refused"):
            return str(tokenizer.apply_chat_template(messages, tokenize=False))

    assert wants_text(render) is as_text
    call = {"type": "function", "function": {"name": "f", "arguments": given}}
    messages: list[dict[str, object]] = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    text = render(with_arguments(messages, as_text=wants_text(render)))
    assert f"\n{written}<|im_end|>" in text
