"""What prompt sources read, what they refuse with which message, and how rounds draw from them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.prompts.draw import draw
from orchestrator.prompts.overlap import check_overlap
from orchestrator.prompts.source import PROMPT_SOURCES, is_safe_id
from orchestrator.prompts.templates import fill
from policies.base.component import create
from policies.base.errors import ConfigurationError, InputError
from policies.base.records import Message, Prompt


def load(config: dict[str, Any]) -> list[Prompt]:
    prompts: list[Prompt] = create(PROMPT_SOURCES.parse(config)).load()
    return prompts


def jsonl(path: Path, content: str | bytes, **settings: Any) -> list[Prompt]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load({"type": "jsonl", "path": str(path), **settings})


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def plain(number: int) -> Prompt:
    return Prompt(id=f"p{number}", messages=(Message(role="user", content=f"question {number}"),))


# --- columns, templates, ids


def test_columns_are_mapped(tmp_path: Path) -> None:
    rows = lines({"q": "7x8?", "a": 56, "n": "first", "level": 2, "other": None})
    columns = {"prompt": "q", "answer": "a", "id": "n", "metadata": ["level"]}
    (prompt,) = jsonl(tmp_path / "a.jsonl", rows, columns=columns, system="Be brief.")
    assert prompt == Prompt(
        id="first",
        messages=(
            Message(role="system", content="Be brief."),
            Message(role="user", content="7x8?"),
        ),
        answer=56,
        metadata={"level": 2},
    )


def test_chats_are_read_as_messages(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ]
    (prompt,) = jsonl(tmp_path / "a.jsonl", lines({"chat": chat}), columns={"messages": "chat"})
    assert [m.role for m in prompt.messages] == ["user", "assistant", "user"]


def test_a_template_is_filled_once_and_never_evaluates_data() -> None:
    values = {"q": "{a} {0.__class__} {{}}", "a": [1, 2], "long name": "x"}
    assert (
        fill("{q}|{a}|{long name}|{{a}}|{}|{0}", values)
        == "{a} {0.__class__} {{}}|[1, 2]|x|{a}|{}|{0}"
    )


def test_ids_are_safe_stable_and_do_not_depend_on_position(tmp_path: Path) -> None:
    one, two = {"prompt": "one", "id": "a/b"}, {"prompt": "two", "id": "ok-1"}
    columns = {"id": "id"}
    first = jsonl(tmp_path / "a.jsonl", lines(one, two), columns=columns)
    second = jsonl(tmp_path / "b.jsonl", lines(two, one), columns=columns)
    assert {p.id for p in first} == {p.id for p in second}
    assert first[1].id == "ok-1"
    assert all(is_safe_id(p.id) for p in first)
    assert not any(is_safe_id(bad) for bad in ("", "a/b", "a b", "..", "x\n", "x" * 97, "\u00e9"))


def test_blank_lines_and_every_line_end_are_accepted(tmp_path: Path) -> None:
    a, b = (json.dumps({"prompt": text}) for text in ("one", "two"))
    for end in ("\n", "\r\n", "\r"):
        assert len(jsonl(tmp_path / "a.jsonl", f"{a}{end}{end}  {end}{b}")) == 2


def test_slices_split_a_set_without_overlap(tmp_path: Path) -> None:
    rows = lines(*({"prompt": f"q{i}"} for i in range(20)))
    common: dict[str, Any] = {"shuffle_seed": 3}
    train = jsonl(tmp_path / "a.jsonl", rows, **common, skip=5)
    held_out = jsonl(tmp_path / "a.jsonl", rows, **common, take=5)
    check_overlap(train, held_out)
    assert (len(train), len(held_out)) == (15, 5)
    assert len(jsonl(tmp_path / "a.jsonl", rows, limit=7)) == 7
    with pytest.raises(InputError, match="nothing is left of 20 prompts"):
        jsonl(tmp_path / "a.jsonl", rows, skip=20)


def test_duplicate_prompts_are_left_out_with_a_warning_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = lines({"prompt": "same"}, {"prompt": "same"}, {"prompt": "other"})
    assert len(jsonl(tmp_path / "a.jsonl", rows)) == 2
    assert "a.jsonl:2 repeats" in caplog.text
    with pytest.raises(InputError, match=r"a\.jsonl:2: the same prompt as at .*a\.jsonl:1"):
        jsonl(tmp_path / "a.jsonl", rows, duplicates="refuse")


# --- bad input

GOOD = json.dumps({"prompt": "good"}) + "\n"
CHAT = {"columns": {"messages": "m"}}


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"", {}, "the prompt file is empty"),
        (b"\n \n", {}, "no prompts in it"),
        (GOOD + "{", {}, r"a\.jsonl:2: not JSON at column 2"),
        (GOOD + '{"prompt": "cut', {}, r"a\.jsonl:2: not JSON"),
        (GOOD + "[1]", {}, r":2: expected an object, got list"),
        (GOOD + "7", {}, r":2: expected an object, got int"),
        ('{"body": "x"}', {}, r":1: no 'prompt'; columns here: body"),
        ('{"prompt": null}', {}, r":1: 'prompt' must be text, got NoneType"),
        ('{"prompt": 7}', {}, r":1: 'prompt' must be text, got int 7"),
        ('{"prompt": "  "}', {}, r":1: 'prompt' is empty"),
        ('{"prompt": "a\\u0000b"}', {}, "NUL"),
        ('{"prompt": "a\\ud800b"}', {}, "half of a surrogate pair at character 1"),
        (b'{"prompt": "\xff"}', {}, r":1: not UTF-8 at byte 12"),
        (b"\xef\xbb\xbf" + GOOD.encode(), {}, "byte order mark at byte 0"),
        (GOOD.encode("utf-16"), {}, "UTF-16"),
        (b"\x1f\x8b\x08\x00", {}, "gzip"),
        (b"PAR1....", {}, "type: parquet"),
        ('{"prompt": "x", "answer": NaN}', {}, r":1: NaN is not JSON"),
        ('{"prompt": "x", "answer": 1e999}', {}, "too large"),
        (
            '{"prompt": "x", "answer": ' + "9" * 5000 + "}",
            {},
            r":1: a whole number in it has 5000 digits",
        ),
        ('{"prompt": "x", "answer": ' + "[" * 100 + "]" * 100 + "}", {}, "nested deeper than 64"),
        ('{"prompt": ' + "[" * 100_000, {}, r":1: it is nested too deep"),
        ('{"prompt": "x"}', {"columns": {"answer": "a"}}, r":1: no 'a'"),
        ('{"prompt": "x"}', {"columns": {"metadata": ["k"]}}, r":1: no 'k'"),
        ('{"prompt": "x"}', {"columns": {"id": "n"}}, r":1: no 'n'"),
        (
            '{"prompt": "x"}',
            {"template": "{y}"},
            r":1: the template names 'y': no 'y'; columns here: prompt",
        ),
        ('{"prompt": "x", "n": 1.5}', {"columns": {"id": "n"}}, "must be text or an integer"),
        (
            '{"prompt": "x", "n": "a"}\n{"prompt": "y", "n": "a"}',
            {"columns": {"id": "n"}},
            r":2: id 'a' was given before, at .*a\.jsonl:1",
        ),
        ('{"m": []}', CHAT, r":1: 'm' must be a list of messages that is not empty"),
        ('{"m": "hello"}', CHAT, r"must be a list of messages"),
        ('{"m": ["hello"]}', CHAT, r"m\[0\] must be an object"),
        ('{"m": [{"role": "robot", "content": "x"}]}', CHAT, r"unknown role 'robot'"),
        ('{"m": [{"role": "user", "content": 1}]}', CHAT, r"m\[0\].content' must be text"),
        ('{"m": [{"role": "system", "content": "x"}]}', CHAT, "no message of the user"),
        (
            '{"m": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
            {**CHAT, "last_assistant": "refuse"},
            "ends with the assistant's turn",
        ),
    ],
)
def test_bad_files_are_refused_with_file_and_line(
    tmp_path: Path, content: str | bytes, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        jsonl(tmp_path / "a.jsonl", content, **settings)


def test_all_bad_rows_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        jsonl(tmp_path / "a.jsonl", GOOD + "{}\n" * 7)
    assert str(caught.value).startswith("7 bad rows in")
    assert len(re.findall(r"a\.jsonl:\d", str(caught.value))) == 5
    with pytest.raises(InputError, match="at least 100 bad rows"):
        jsonl(tmp_path / "a.jsonl", "{}\n" * 5000)


def test_a_huge_line_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as handle:
        handle.write(GOOD.encode() + b'{"prompt": "')
        handle.truncate(600 * 2**20)  # sparse: takes no disk
    with pytest.raises(InputError, match=r"a\.jsonl:2: the line is longer than 16 MiB"):
        load({"type": "jsonl", "path": str(path)})


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="there is no such prompt file"):
        load({"type": kind, "path": str(tmp_path / "nothing")})
    with pytest.raises(InputError, match="is a folder"):
        load({"type": kind, "path": str(tmp_path)})


def test_parquet_is_read_and_checked_like_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"question": ["one", "two", ""], "answer": [1, 2, 3]})
    pq.write_table(table.slice(0, 2), path)
    config = {"type": "parquet", "path": str(path), "columns": {"prompt": "question"}}
    assert [(p.messages[0].content, p.answer) for p in load(config)] == [("one", 1), ("two", 2)]
    pq.write_table(table, path)
    with pytest.raises(InputError, match=r"a\.parquet: row 3: 'question' is empty"):
        load(config)
    with pytest.raises(InputError, match="no 'text'; columns here: question, answer"):
        load({**config, "columns": {"prompt": "text"}})
    path.write_text("not parquet at all", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        load(config)


# --- arithmetic and reasoning_gym


def test_arithmetic_splits_all_questions_in_two() -> None:
    train = load({"type": "arithmetic"})
    held_out = load({"type": "arithmetic", "split": "held_out"})
    assert (len(train), len(held_out)) == (97, 24)
    check_overlap(train, held_out)
    both = {p.id: p for p in train + held_out}
    assert both["7x8"].messages[-1].content == "What is 7 times 8?"
    assert both["7x8"].answer == 56
    other = load({"type": "arithmetic", "split": "held_out", "split_seed": 1})
    assert {p.id for p in other} != {p.id for p in held_out}


def test_arithmetic_examples_give_no_answer_away() -> None:
    config = {
        "type": "arithmetic",
        "operations": ["plus", "minus"],
        "shots": 2,
        "system": "Hi.",
        "split": "all",
    }
    prompts = load(config)
    first = prompts[0].messages
    assert [m.role for m in first] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert first[2].content == "13 plus 14 is 27."
    assert len(prompts) == 242
    assert {p.id: p.answer for p in prompts}["2m12"] == -10


@pytest.mark.parametrize(
    "bad", [{"low": 5, "high": 4}, {"held_out": 121}, {"operations": []}, {"operations": ["over"]}]
)
def test_arithmetic_refuses_impossible_sets(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        PROMPT_SOURCES.parse({"type": "arithmetic", **bad})


def test_reasoning_gym_tasks_carry_what_their_scorer_needs() -> None:
    config = {
        "type": "reasoning_gym",
        "dataset": "chain_sum",
        "parameters": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        "size": 200,
        "seed": 3,
        "suffix": " Answer:",
    }
    prompts = load(config)
    assert len(prompts) < 200  # so few questions come again
    entry = prompts[0].metadata["entry"]
    assert isinstance(entry, dict)
    assert prompts[0].messages[-1].content == f"{entry['question']} Answer:"
    assert prompts[0].answer == entry["answer"]
    with pytest.raises(InputError, match="did you mean chain_sum"):
        load({**config, "dataset": "chain_sums"})
    with pytest.raises(InputError, match="refuses"):
        load({**config, "parameters": {"no_such_parameter": 1}})


# --- draw


@given(st.integers(1, 40), st.data())
@settings(deadline=None)
def test_rounds_draw_without_replacement_and_evenly(size: int, data: st.DataObject) -> None:
    per_round = data.draw(st.integers(1, size))
    seed = data.draw(st.integers(0, 3))
    prompts = [plain(i) for i in range(size)]
    num_rounds = data.draw(st.integers(1, 3 * size // per_round + 2))
    seen: Counter[str] = Counter()
    stream: list[str] = []
    for round_index in range(1, num_rounds + 1):
        drawn = [p.id for p in draw(prompts, round_index, per_round, seed)]
        assert len(set(drawn)) == len(drawn) == per_round
        seen.update(drawn)
        stream.extend(drawn)
    for start in range(0, len(stream) - size + 1, size):
        assert len(set(stream[start : start + size])) == size
    assert max(seen.values()) - min(seen[p.id] for p in prompts) <= 1


def test_draws_repeat_with_the_seed_and_differ_between_passes_and_seeds() -> None:
    prompts = [plain(i) for i in range(50)]
    assert draw(prompts, 3, 20, 7) == draw(prompts, 3, 20, 7)
    assert draw(prompts, 1, 50, 7) != draw(prompts, 2, 50, 7)
    assert draw(prompts, 1, 20, 7) != draw(prompts, 1, 20, 8)


@pytest.mark.parametrize("per_round", [0, 6])
def test_a_round_larger_than_the_set_is_refused(per_round: int) -> None:
    with pytest.raises(ConfigurationError, match=r"between 1 and 5 .*prompts\.per_round"):
        draw([plain(i) for i in range(5)], 1, per_round, 0)


def test_round_zero_draws_nothing() -> None:
    with pytest.raises(ValueError, match="rounds from 1"):
        draw([plain(0)], 0, 1, 0)


# --- overlap


def test_overlap_is_found_by_id_and_by_text_whatever_the_spelling() -> None:
    train = [plain(i) for i in range(10)]
    by_text = Prompt(
        id="new",
        messages=(
            Message(role="system", content="another"),
            Message(role="user", content=" Question\n\uff13 "),
        ),
    )
    by_id = Prompt(id="p4", messages=(Message(role="user", content="fresh"),))
    fresh = plain(99)
    check_overlap(train, [fresh])
    with pytest.raises(InputError, match=r"2 of 3 held-out .*new: .*p4: 'fresh'.*allow_overlap"):
        check_overlap(train, [by_text, by_id, fresh])
    with pytest.raises(InputError) as caught:
        check_overlap(train, train)
    assert str(caught.value).count("question") == 3
