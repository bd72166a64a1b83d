"""Ways into rows: dotted paths in columns and templates are resolved or refused, and no placeholder stays as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.prompts.column_paths import look_up
from orchestrator.prompts.row_values import RowError
from orchestrator.prompts.templates import fill
from policies.base.errors import InputError
from tests.support.row_files import read

NESTED: dict[str, Any] = {
    "q": "Which?",
    "choices": [{"text": "red"}, {"text": "blue"}],
    "deep": {"list": [[1, 2], [3]], "7": "seven"},
    "a.b": "flat",
    "a": {"b": "nested", "c": None},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("choices[1].text", "blue"),
        ("choices[-1].text", "blue"),
        ("choices.0.text", "red"),
        ("deep.list[0][1]", 2),
        ("deep.7", "seven"),
        ("a.b", "flat"),
        ("a.c", None),
    ],
)
def test_a_path_leads_to_what_stands_there(path: str, value: object) -> None:
    assert look_up(NESTED, path) == value


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("choice[0]", "no 'choice.0.'; columns here: q, choices"),
        ("choices[2].text", "'choices' is a list of 2"),
        ("choices[0].txt", r"'choices\[0\]' holds text"),
        ("q.text", "'q' is str 'Which\\?', which holds no keys"),
        ("", "is no way into a row"),
        ("choices[x]", "is no way into a row"),
        ("deep..list", "is no way into a row"),
    ],
)
def test_a_path_that_leads_nowhere_says_how_far_it_came(path: str, message: str) -> None:
    with pytest.raises(RowError, match=message):
        look_up(NESTED, path)


def test_a_template_reaches_into_a_row() -> None:
    template = "{q} A. {choices[0].text} B. { choices[1].text } {deep.list[0]} {a.b} {{x}} {} x^{2}"
    assert fill(template, NESTED) == "Which? A. red B. blue [1, 2] flat {x} {} x^{2}"


def test_a_json_object_in_a_template_stays_one() -> None:
    assert fill('{q} Answer as {"colour": 1}.', NESTED) == 'Which? Answer as {"colour": 1}.'


@pytest.mark.parametrize(
    "template",
    [
        "{q} {choices[2].text}",
        "{q} {choices[0]text}",
        "{q} {choices[0]!r}",
        "{q:>10}",
        "{q} {choices[0].text",
        "{q} }",
        "{q} {a.c}",
        "{q} {colour}",
        "{q} {q|upper}",
        "{q} {row['q']}",
    ],
)
def test_a_placeholder_that_cannot_be_filled_is_refused_and_never_shown(
    tmp_path: Path, template: str
) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl:1: the template"):
        read(tmp_path, [NESTED, NESTED | {"q": "What?"}], template=template)


@pytest.mark.parametrize("template", ["{{ question }}", "{{question}} A. {other}", "Answer."])
def test_a_template_without_its_column_is_refused_with_one_that_works(
    tmp_path: Path, template: str
) -> None:
    rows = [{"question": f"Q{i}", "other": "x", "answer": i} for i in range(3)]
    with pytest.raises(InputError) as caught:
        read(tmp_path, rows, template=template)
    found = re.search(r'(?:write|e\.g\.) (".*")$', str(caught.value))
    assert found is not None
    prompts = read(tmp_path, rows, template=json.loads(found[1]))
    assert [p.messages[-1].content.count(f"Q{i}") for i, p in enumerate(prompts)] == [1, 1, 1]


def test_a_template_that_makes_all_rows_one_prompt_is_refused(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}", "subject": "maths"} for i in range(3)]
    with pytest.raises(InputError, match=r"all 3 rows of .* become the same prompt"):
        read(tmp_path, rows, template="A question of {subject}?")


def test_a_template_never_shows_the_answer_and_the_remedy_keeps_the_word(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}", "answer": f"secret{i}"} for i in range(2)]
    with pytest.raises(InputError, match="which is the answer") as caught:
        read(tmp_path, rows, template=r"{question} Write \boxed{answer}.")
    remedy = re.search(r'leave it out; (".*") shows', str(caught.value))
    assert remedy is not None
    shown = [p.messages[0].content for p in read(tmp_path, rows, template=json.loads(remedy[1]))]
    assert shown == [r"Q0 Write \boxed{answer}.", r"Q1 Write \boxed{answer}."]
    judged = read(tmp_path, rows, template="{question} {answer}?", columns={"answer": None})
    assert judged[0].messages[0].content == "Q0 secret0?"


def test_columns_of_every_kind_may_be_paths(tmp_path: Path) -> None:
    row = {
        "task": {"ask": "7*8?", "n": 5},
        "truth": [{"value": 56}],
        "info": {"level": {"name": "easy"}},
    }
    columns = {
        "prompt": "task.ask",
        "answer": "truth[0].value",
        "id": "task.n",
        "metadata": ["info.level"],
    }
    (prompt,) = read(tmp_path, [row], columns=columns)
    assert (prompt.id, prompt.messages[0].content, prompt.answer) == ("5", "7*8?", 56)
    assert prompt.metadata == {"info.level": {"name": "easy"}}
