"""What the policy must read is in the prompt, or the template is refused before a run with a setting that helps."""

from __future__ import annotations

import re
from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import ConfigurationError
from policies.base.records import Message, Prompt
from tests.support.template_folders import chat_with, of_packages, of_tests
from workers.rollout.chat.chat_settings import ChatSettings
from workers.rollout.chat.template_probe import check_prompt
from workers.rollout.chat.tokenizer_chat import TokenizerChat
from workers.rollout.chat.transcript import Transcript
from workers.rollout.strategies.tool_loop import ToolLoop
from workers.rollout.strategy import STRATEGIES

PACKAGES = of_packages()
CALLS = {"hermes": "calculator", "fenced_code": "python"}
NO_TOOL_ROLE = """\
{%- if tools %}{{ tools | tojson }}<tool_call>{% endif %}
{%- for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
NEEDS_CALLS = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('a result without a call') }}{% endif %}
{%- if true %}<|im_start|>{{ m.role }}{% endif %}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LAST_RESULT_ONLY = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}{% if m.role != 'tool' or loop.last %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TAKES_TURNS = """\
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}
{%- if true %}<|im_start|>{{ m.role }}{% endif %}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
USERS_ONLY = """\
{%- for m in messages %}{% if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PARTS = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def loop_with(calls: str, **settings: Any) -> ToolLoop:
    tree = {"tools": [{"type": CALLS[calls]}], "calls": {"type": calls, **settings}}
    built: ToolLoop = create(STRATEGIES.parse({"type": "tool_loop", **tree}))
    return built


def findings(strategy: ToolLoop, chat: TokenizerChat) -> tuple[str, ...]:
    return strategy.template_findings(chat, "rollout.strategy")


def refused(strategy: ToolLoop, chat: TokenizerChat) -> str:
    """Why the template is refused; empty when it is not."""
    try:
        findings(strategy, chat)
    except ConfigurationError as error:
        return str(error)
    return ""


def asked(*roles: str, tools: tuple[dict[str, Any], ...] = ()) -> Prompt:
    messages = tuple(Message(role=role, content=f"from {role}") for role in roles)
    return Prompt(id="p", messages=messages, tools=tools)


def remedied(message: str) -> tuple[ChatSettings, dict[str, Any]]:
    """What a refusal tells to set: of the template, and of the calls."""
    assert "Set by: policy.model" in message
    _, _, fix = message.partition("Fix: set ")
    found = dict(re.findall(r"rollout\.template_(roles|tools): (\w+)", fix))
    calls = dict(re.findall(r"rollout\.strategy\.calls\.(observation_role): (\w+)", fix))
    assert found or calls, message
    return ChatSettings(**found), calls


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (NO_TOOL_ROLE, "does not show observations in the role tool"),
        (NEEDS_CALLS, "a result without a call"),
        (LAST_RESULT_ONLY, "does not show observations in the role tool"),
        (USERS_ONLY, "does not tell the policy of its tools"),
        (of_tests("chatml"), "does not tell the policy of its tools"),
        (of_tests("gemma"), "does not tell the policy of its tools"),
        (of_tests("mistral"), "does not tell the policy of its tools"),
    ],
)
def test_a_template_that_hides_tools_or_their_answers_is_refused_and_the_remedy_works(
    template: str, said: str
) -> None:
    chat = chat_with(template)
    with pytest.raises(ConfigurationError) as caught:
        findings(loop_with("hermes"), chat)
    assert said in str(caught.value)
    settings, calls = remedied(str(caught.value))
    findings(loop_with("hermes", **calls), chat.configured(settings))


def test_what_the_remedies_write_is_what_the_policy_reads() -> None:
    settings = ChatSettings(roles="user_only", tools="text")
    chat = chat_with(USERS_ONLY, settings)
    strategy = loop_with("hermes")
    prompt = (Message(role="system", content="Be brief."), Message(role="user", content="2 + 2?"))
    transcript = Transcript(chat, prompt, strategy.sample_tools())
    opened = chat.tokenizer.decode(list(transcript.token_ids))
    assert opened.count("<|im_start|>user") == 1
    for text in ("Be brief.", '"calculator"', "<tool_call>", "2 + 2?"):
        assert text in opened
    transcript.said(chat.encode("x<|im_end|>"), "x")
    answers = (Message(role="tool", content="4"), Message(role="tool", content="5"))
    observed = chat.tokenizer.decode(list(transcript.observed(answers)))
    assert observed == "\n<|im_start|>user\n4\n\n5<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "prompt", "said"),
    [
        (of_tests("gemma"), asked("system", "user"), "there is no system role"),
        (TAKES_TURNS, asked("user", "user"), "turns must alternate"),
        (USERS_ONLY, asked("system", "user"), "does not show messages in the role system"),
        (USERS_ONLY, asked("developer", "user"), "does not show messages in the role developer"),
        (of_tests("chatml"), asked("user", tools=(WEATHER,)), "does not tell the policy of its"),
    ],
)
def test_a_prompt_that_is_not_shown_whole_is_refused_and_the_remedy_works(
    template: str, prompt: Prompt, said: str
) -> None:
    chat = chat_with(template)
    with pytest.raises(ConfigurationError) as caught:
        check_prompt(chat, prompt)
    assert said in str(caught.value)
    settings, _ = remedied(str(caught.value))
    check_prompt(chat.configured(settings), prompt)


def test_a_template_that_reads_parts_is_given_parts() -> None:
    chat = chat_with(PARTS)
    check_prompt(chat, asked("system", "user"))
    text = chat.text(asked("user").messages, generation_prompt=True)
    assert text == "<|im_start|>user\nfrom user<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_teaches_other_calls_than_are_read_is_warned_of() -> None:
    other = NEEDS_CALLS.replace("{{ raise_exception('a result without a call') }}", "")
    (warning,) = findings(loop_with("hermes"), chat_with(other))
    assert "does not write <tool_call>" in warning
    assert "rollout.template_tools: text" in warning
    told = chat_with(NO_TOOL_ROLE, ChatSettings(tools="text"))
    assert findings(loop_with("hermes", observation_role="user"), told) == ()


def test_a_template_that_rewrites_history_is_kept_to_what_was_sampled_and_said_so() -> None:
    chat = chat_with(of_tests("thoughts_dropped"))
    (warning,) = findings(loop_with("fenced_code"), chat)
    assert "the sampled tokens are kept" in warning
    assert "rollout.strategy.rewritten_history (auto)" in warning
    kept: ToolLoop = create(
        STRATEGIES.parse(
            {"type": "tool_loop", "tools": [{"type": "python"}], "rewritten_history": "keep"}
        )
    )
    assert findings(kept, chat) == ()


@pytest.mark.parametrize("name", sorted(PACKAGES))
@pytest.mark.parametrize("calls", sorted(CALLS))
def test_with_each_template_that_packages_bring_the_policy_reads_all_or_it_is_refused(
    name: str, calls: str
) -> None:
    """Checked on the tokens and not by the probe's own rules: tools, observations, and only what was sampled."""
    chat = chat_with(PACKAGES[name])
    strategy = loop_with(calls)
    refusal = refused(strategy, chat)
    if refusal and "Fix: set" not in refusal:
        assert name == "vllm:template_kimi_audio", "the only one that no setting can mend"
        return
    if refusal:
        settings, changed = remedied(refusal)
        chat, strategy = chat.configured(settings), loop_with(calls, **changed)
        assert refused(strategy, chat) == ""
    transcript = Transcript(
        chat, (Message(role="user", content="How much is it?"),), strategy.sample_tools()
    )
    opened = chat.tokenizer.decode(list(transcript.token_ids))
    assert "How much is it?" in opened
    if calls == "hermes":
        assert "calculator" in opened
    for text in ("<think>\nhm\n</think>\n\nfirst", "second"):
        before = list(transcript.token_ids)
        sampled = (*chat.encode(text, special=False), *sorted(chat.terminators)[:1])
        transcript.said(sampled, text)
        shown = transcript.observed(strategy.sample_observation())
        assert transcript.token_ids == [*before, *sampled, *shown]
        assert "pawl observes first" in chat.tokenizer.decode(list(shown))
        assert "pawl observes then" in chat.tokenizer.decode(list(shown))


def test_packages_bring_templates() -> None:
    assert sum(name.startswith("trl:") for name in PACKAGES) > 40
