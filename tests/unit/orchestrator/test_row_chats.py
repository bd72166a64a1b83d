"""Chats in rows: all that a template can show reaches it, in every style of keys; what cannot is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan.sizes import prompt_text
from policies.base.errors import InputError, RolloutError
from policies.base.records import Message, Prompt, ScoredGroup
from policies.storage.artifacts import canonical_json, commit, read_records, write_draft
from tests.support.chat_formats import chat_of
from tests.support.row_files import pasted, read
from workers.judge.prompt import prompt_text as judged_text
from workers.rollout.chat.shown_calls import check_shown

KINDS = ["jsonl", "parquet"]
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Oslo"}},
}
WEATHER = {"name": "weather", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": WEATHER}]
ASK = {"role": "user", "content": "7*8?"}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "How warm is it?"},
    {"role": "assistant", "content": None, "reasoning_content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "7", "tool_call_id": "c1", "name": "weather"},
    ASK,
]


@pytest.mark.parametrize("kind", KINDS)
def test_calls_ids_names_thoughts_and_tools_are_carried(tmp_path: Path, kind: str) -> None:
    (prompt,) = read(tmp_path, [{"messages": HISTORY, "tools": TOOLS, "answer": 56}], kind)
    assert prompt.tools == tuple(TOOLS)
    assert [message.model_dump(mode="json") for message in prompt.messages] == [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [CALL]},
        {"role": "tool", "content": "7", "name": "weather", "tool_call_id": "c1"},
        ASK,
    ]


def test_what_is_carried_is_read_by_the_policy_and_by_judges_and_is_counted(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, [{"messages": HISTORY, "tools": TOOLS}])
    template = (
        "{% for t in tools %}{{ t.function.name }};{% endfor %}{% for m in messages %}"
        "{{ m.role }}:{{ m.content }}{{ m.reasoning_content }}"
        "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
        "{{ m.tool_call_id }};{% endfor %}"
    )
    tokenizer = chat_of("chatml").tokenizer
    rendered = tokenizer.apply_chat_template(
        [m.model_dump() for m in prompt.messages],
        tools=list(prompt.tools),
        chat_template=template,
        tokenize=False,
    )
    assert 'assistant:I look.weather{"city": "Oslo"};tool:7c1;' in rendered
    assert rendered.startswith("weather;")
    assert "Oslo" in judged_text(prompt)
    assert "Oslo" in prompt_text(prompt)
    assert '"parameters"' in prompt_text(prompt)


def test_a_template_that_leaves_calls_or_tools_out_is_refused(tmp_path: Path) -> None:
    called, offered = read(
        tmp_path,
        [{"messages": HISTORY}, {"messages": [ASK], "tools": TOOLS}],
    )
    for family, prompt, what in (
        ("chatml", called, "tool calls of earlier turns"),
        ("chatml", offered, "does not show the tools"),
        ("chatml_tools", called, "tool calls of earlier turns"),
    ):
        text = chat_of(family).text(prompt.messages, prompt.tools, generation_prompt=True)
        with pytest.raises(RolloutError, match=what):
            check_shown(text, prompt.messages, prompt.tools)
    text = chat_of("chatml_tools").text(offered.messages, offered.tools, generation_prompt=True)
    check_shown(text, offered.messages, offered.tools)


def test_a_plain_message_is_written_as_it_always_was() -> None:
    """Digests of older runs, and templates that ask whether a key is there, depend on it."""
    message = Message(role="user", content="7*8?")
    assert message.model_dump() == ASK
    assert canonical_json(Prompt(id="a", messages=(message,))) == (
        '{"answer":null,"id":"a","messages":[{"content":"7*8?","role":"user"}],"metadata":{},"tools":[]}'
    )


def test_prompts_with_calls_survive_the_disk(tmp_path: Path) -> None:
    prompts = read(tmp_path, [{"messages": HISTORY, "tools": TOOLS}, {"messages": [ASK]}])
    groups = [ScoredGroup(prompt=p, trajectories=(), feedback=(), comparisons=()) for p in prompts]
    path = tmp_path / "groups.parquet"
    commit(write_draft(tmp_path / "draft", ScoredGroup, groups), path)
    assert read_records(path, ScoredGroup) == groups


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"name": "weather", "arguments": {"city": "Oslo"}},
        {"type": "function", "function": {"name": "weather", "parameters": {"city": "Oslo"}}},
    ],
)
def test_arguments_reach_the_template_as_an_object(tmp_path: Path, call: dict[str, Any]) -> None:
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    (prompt,) = read(tmp_path, [{"messages": [ASK, said, {"role": "tool", "content": ""}]}])
    assert prompt.messages[1].tool_calls == (
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}},
    )


def test_nulls_that_a_table_fills_in_are_no_arguments_and_no_keys(tmp_path: Path) -> None:
    other = {"function": {"name": "time", "arguments": {"zone": "UTC"}}, "type": "function"}
    rows = [
        {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [CALL, other]}, ASK]},
        {"messages": [ASK | {"weight": None, "name": ""}]},
    ]
    calls = read(tmp_path, rows, "parquet")[0].messages[1].tool_calls
    assert [call["function"] for call in calls] == [CALL["function"], other["function"]]


@pytest.mark.parametrize("kind", KINDS)
def test_sharegpt_turns_become_messages_with_their_calls(tmp_path: Path, kind: str) -> None:
    turns = [
        {"from": "human", "value": "How warm?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "7 degrees."},
        {"from": "human", "value": "And now?"},
    ]
    row = {"conversations": turns, "system": "Be brief.", "tools": json.dumps([WEATHER])}
    (prompt,) = read(tmp_path, [row], kind)
    assert [m.role for m in prompt.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert prompt.messages[0].content == "Be brief."
    assert prompt.messages[2].tool_calls[0]["function"] == CALL["function"]
    assert prompt.tools == tuple(TOOLS)


def test_a_developer_speaks_as_the_system(tmp_path: Path) -> None:
    def roles(*given: str) -> list[tuple[str, str]]:
        messages = [*({"role": role, "content": role} for role in given), ASK]
        (prompt,) = read(tmp_path, [{"messages": messages}])
        return [(m.role, m.content) for m in prompt.messages[:-1]]

    assert roles("developer") == [("system", "developer")]
    assert roles("system", "developer") == [("system", "system\n\ndeveloper")]


@pytest.mark.parametrize("kind", KINDS)
def test_text_parts_are_joined_and_pictures_refused(tmp_path: Path, kind: str) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "7*8?"}]
    (prompt,) = read(tmp_path, [{"messages": [{"role": "user", "content": parts}]}], kind)
    assert prompt.messages[0].content == "What is\n7*8?"
    picture = [*parts, {"type": "image_url", "image_url": {"url": "a.png"}}]
    with pytest.raises(InputError, match=r"content\[2\] is of type 'image_url'"):
        read(tmp_path, [{"messages": [{"role": "user", "content": picture}]}], kind)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (ASK | {"weight": 0}, r"messages\[0\].weight"),
        (ASK | {"audio": {"id": "x"}}, r"messages\[0\].audio"),
        (ASK | {"thinking": "hm"}, r"messages\[0\].thinking"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}, "content.0..cache"),
    ],
)  # fmt: skip
def test_a_key_that_would_be_lost_is_named_with_a_remedy_that_works(
    tmp_path: Path, message: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named + " would be lost") as caught:
        read(tmp_path, [{"messages": [message]}])
    assert len(read(tmp_path, [{"messages": [message]}], **pasted(str(caught.value)))) == 1


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "assistant", "content": None}, "must be text, got NoneType"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "only the assistant's"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "function.name"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "(1)"}]}, "must be JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "be an object"),
        ({"from": "robot", "value": "x"}, "unknown role 'robot'"),
    ],
)
def test_a_message_that_cannot_be_shown_is_refused(
    tmp_path: Path, message: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=rf"rows\.jsonl:1: .*{problem}"):
        read(tmp_path, [{"messages": [message, ASK]}])


def test_tools_that_are_no_schemas_are_refused_when_named_and_else_unused(tmp_path: Path) -> None:
    row = {"prompt": "Which?", "tools": ["hammer"]}
    assert read(tmp_path, [row])[0].tools == ()
    with pytest.raises(InputError, match="must be a tool's JSON schema"):
        read(tmp_path, [row], columns={"tools": "tools"})
    assert read(tmp_path, [{"prompt": "Which?", "tools": TOOLS}], columns={"tools": None})[0].tools == ()  # fmt: skip


# --- chats that end with the assistant

ENDED: dict[str, Any] = {"messages": [ASK, {"role": "assistant", "content": "It is 56."}]}


def test_the_last_turn_of_the_assistant_is_the_answer_and_no_part_of_the_prompt(
    tmp_path: Path,
) -> None:
    (prompt,) = read(tmp_path, [ENDED])
    assert [m.content for m in prompt.messages] == ["7*8?"]
    assert prompt.answer == "It is 56."
    demonstration = [{"role": "assistant", "content": "It is 56."}]
    assert prompt.metadata == {"demonstration": demonstration}
    (known,) = read(tmp_path, [ENDED | {"answer": 56}])
    assert (known.answer, known.metadata["demonstration"]) == (56, demonstration)
    assert read(tmp_path, [ENDED | {"answer": 56}], last_assistant="answer")[0].answer == "It is 56."  # fmt: skip
    assert read(tmp_path, [ENDED], last_assistant="drop")[0].answer is None


def test_where_the_last_turn_could_be_a_beginning_it_is_refused_with_a_remedy_that_works(
    tmp_path: Path,
) -> None:
    row = {"prompt": ENDED["messages"], "answer": 56}
    with pytest.raises(InputError, match="ends with the assistant's turn") as caught:
        read(tmp_path, [row])
    assert len(read(tmp_path, [row], **pasted(str(caught.value)))[0].messages) == 1


def test_preferences_without_a_prompt_ask_what_their_chosen_side_asks(tmp_path: Path) -> None:
    rejected = [ASK, {"role": "assistant", "content": "57"}]
    (prompt,) = read(tmp_path, [{"chosen": ENDED["messages"], "rejected": rejected}])
    assert ([m.content for m in prompt.messages], prompt.answer) == (["7*8?"], "It is 56.")


@pytest.mark.parametrize(
    "end",
    [
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
    ],
)
def test_a_chat_that_ends_with_no_answer_is_refused(tmp_path: Path, end: list[Any]) -> None:
    with pytest.raises(InputError, match="ends with"):
        read(tmp_path, [{"messages": [ASK, *end]}])
