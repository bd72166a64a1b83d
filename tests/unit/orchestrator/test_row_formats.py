"""Layouts of published data sets: chosen by the first rows, named with what is not used, and overridden by `format`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest

from orchestrator.prompts.formats import FORMATS
from orchestrator.prompts.row_config import Format
from policies.base.component import create
from policies.base.errors import InputError
from tests.support.row_files import pasted, read, source_of
from workers.verify.verifier import VERIFIERS

KINDS = ["jsonl", "parquet"]
ASK = [{"role": "user", "content": "7*8?"}]
INPUT_OUTPUT = '{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}'
CALLS = '{"fn_name": "add", "inputs": [[1, 2], [2, 3]], "outputs": [[3], [5]]}'
VERL: dict[str, Any] = {
    "data_source": "times",
    "prompt": ASK,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "56"},
    "extra_info": {"index": 3, "split": "train", "tolerance": 0},
}
ARC = {
    "question": "Hot?",
    "choices": {"text": ["ice", "fire"], "label": ["1", "2"]},
    "answerKey": "2",
}
PUBLISHED: dict[str, tuple[dict[str, Any], str, Any, str]] = {
    "verl": (VERL, "7*8?", "56", "reward_model.style"),
    "gsm8k": (
        {"question": "6 by 12?", "answer": "6*12=72\n#### 1,072", "nr": 4},
        "6 by 12?",
        "1072",
        "nr",
    ),
    "math": (
        {"problem": "Half?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "1"},
        "Half?",
        r"\frac{1}{2}",
        "level",
    ),
    "multiple_choice": (ARC | {"id": "m7"}, "Hot?\n\n1. ice\n2. fire", "2", "id"),
    "apps": (
        {"question": "Add.", "input_output": INPUT_OUTPUT, "url": "u"},
        "Add.",
        [{"stdin": "1 2\n", "stdout": "3\n"}],
        "url",
    ),
    "code_contests": (
        {
            "description": "Add.",
            "public_tests": {"input": ["1 2"], "output": ["3"]},
            "private_tests": {"input": ["2 2"], "output": ["4"]},
            "name": "n",
        },
        "Add.",
        [{"stdin": "1 2", "stdout": "3"}, {"stdin": "2 2", "stdout": "4"}],
        "name",
    ),
    "livecodebench": (
        {
            "question_content": "Add.",
            "public_test_cases": '[{"input": "1 2", "output": "3", "testtype": "stdin"}]',
            "platform": "x",
        },
        "Add.",
        [{"stdin": "1 2", "stdout": "3"}],
        "platform",
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "7*8?"}], "answer": "56", "source": "s"},
        "7*8?",
        "56",
        "source",
    ),
    "openai": ({"messages": ASK, "answer": 56, "source": "s"}, "7*8?", 56, "source"),
    "alpaca": (
        {"instruction": "Translate.", "input": "rot", "output": "red", "text": "t"},
        "Translate.\n\nrot",
        "red",
        "text",
    ),
    "plain": ({"question": "7*8?", "answer": 56, "level": 1}, "7*8?", 56, "level"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_is_told_by_its_rows_and_what_is_unused_is_named(
    tmp_path: Path, name: str, kind: str
) -> None:
    row, asked, answer, unused = PUBLISHED[name]
    source = source_of(tmp_path, [row], kind)
    (prompt,) = source.load()
    assert (prompt.messages[-1].content, prompt.answer) == (asked, answer)
    note = source.notes()[0]
    assert note.startswith(f"format {name} (chosen from the first rows)")
    assert note.endswith(f"not used: {unused}")


def test_hugging_face_reads_the_same_layouts(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, [VERL], "huggingface")
    assert (prompt.answer, prompt.metadata["extra_info"]) == ("56", VERL["extra_info"])


def test_every_layout_can_be_configured() -> None:
    assert {"auto"} | {layout.name for layout in FORMATS} == set(get_args(Format))


@pytest.mark.parametrize("kind", KINDS)
def test_verl_rows_keep_what_verl_hands_to_functions(tmp_path: Path, kind: str) -> None:
    kept = {name: VERL[name] for name in ("data_source", "ability", "extra_info")}
    assert read(tmp_path, [VERL], kind)[0].metadata == kept
    columns = {"messages": "prompt", "answer": "reward_model.ground_truth"}
    assert read(tmp_path, [VERL], kind, columns=columns)[0].metadata == kept
    other = read(tmp_path, [VERL], kind, columns={"answer": "extra_info.index"})
    assert other[0].answer == 3


def test_rows_of_trl_bring_their_columns_and_their_solution_as_it_stands(tmp_path: Path) -> None:
    row = {"prompt": ASK, "solution": r"$\boxed{56}$", "difficulty": 2}
    source = source_of(tmp_path, [row])
    (prompt,) = source.load()
    assert source.notes()[0].startswith("format trl")
    assert prompt.answer == r"$\boxed{56}$"
    assert prompt.metadata == {"solution": r"$\boxed{56}$", "difficulty": 2}


def test_a_layout_that_is_configured_wins_over_the_rows(tmp_path: Path) -> None:
    row = {"question": "6 by 12?", "answer": "6*12=72\n#### 72"}
    source = source_of(tmp_path, [row], format="plain")
    assert source.load()[0].answer == row["answer"]
    assert source.notes()[0].startswith("format plain (as configured)")
    named = read(tmp_path, [row], columns={"prompt": "question", "answer": "answer"})
    assert (named[0].answer, named[0].metadata["solution"]) == ("72", row["answer"])


def test_one_row_of_another_layout_is_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}", "answer": f"#### {i}"} for i in range(3)]
    rows.append({"question": "Q3", "answer": "three"})
    with pytest.raises(InputError, match=r":4: 'answer' holds no final answer behind ####") as no:
        read(tmp_path, rows)
    assert len(read(tmp_path, rows, **pasted(str(no.value)))) == 4


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "Q", "choices": ["a", "b"], "answer": 1}, "B"),
        ({"question": "Q", "choices": ["a", "b"], "answer": 1.0}, "B"),
        ({"question": "Q", "choices": ["a", "b"], "answer": "b"}, "B"),
        ({"question": "Q", "options": ["A)x", "B)y"], "correct": "B"}, "B"),
        ({"question_stem": "Q", "choices": {"text": [1, 2], "label": ["X", "Y"]}, "label": "Y"}, "Y"),
        ({"question": "Q", "choices": [{"label": x, "text": x.lower()} for x in "CD"], "answer": "C"}, "C"),
    ],
)  # fmt: skip
def test_the_right_choice_is_its_letter_however_the_row_names_it(
    tmp_path: Path, row: dict[str, Any], answer: str
) -> None:
    (prompt,) = read(tmp_path, [row])
    assert prompt.answer == answer
    lines = prompt.messages[0].content.splitlines()[2:]
    assert [line[0] for line in lines].count(answer) == 1
    assert all(len(line) in (3, 4) for line in lines), "a label stands once in its line"


@pytest.mark.parametrize("answer", [2, -1, "c", True, None])
def test_an_answer_that_is_no_choice_is_refused(tmp_path: Path, answer: Any) -> None:
    rows = [{"question": "Q", "choices": ["a", "b"], "answer": answer}]
    with pytest.raises(InputError, match="is none of the choices A, B"):
        read(tmp_path, rows)


def test_choices_in_a_template_keep_the_answers_and_say_so(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}", "choices": ["a", "b"], "answer": i} for i in range(2)]
    template = "{question} A. {choices[0]} B. {choices[1]}"
    source = source_of(tmp_path, rows, template=template)
    prompts = source.load()
    assert prompts[0].messages[0].content == "Q0 A. a B. b"
    assert [p.answer for p in prompts] == [0, 1]
    assert "format: multiple_choice gives letters" in source.notes()[0]
    letters = read(tmp_path, rows, template=template, format="multiple_choice")
    assert [p.answer for p in letters] == ["A", "B"]


@pytest.mark.parametrize(
    ("tests", "starter", "wanted"),
    [
        (CALLS, "", {"call": "add", "arguments": [1, 2], "expected": 3}),
        (CALLS.replace("[3]", "3").replace("[5]", "5"), "", {"call": "add", "arguments": [1, 2], "expected": 3}),
        (CALLS, "class Solution:\n  def add(self, a):", {"call": "Solution.add", "arguments": [1, 2], "expected": 3}),
        ('{"inputs": [["1", "2"]], "outputs": [["3"]]}', "", {"stdin": "1\n2", "stdout": "3"}),
    ],
)  # fmt: skip
def test_code_tests_are_written_as_the_verifier_reads_them(
    tmp_path: Path, tests: str, starter: str, wanted: dict[str, Any]
) -> None:
    row = {
        "question": "Add.",
        "input_output": tests,
        "starter_code": starter,
        "solutions": '["print(3)"]',
    }
    (prompt,) = read(tmp_path, [row])
    assert isinstance(prompt.answer, list)
    assert prompt.answer[0] == wanted
    assert prompt.metadata["solution"] == "print(3)"
    assert (starter in prompt.messages[0].content) is True
    create(VERIFIERS.parse({"type": "code_tests"})).check_prompt(prompt)


def test_code_tests_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    row = {"question": "Add.", "input_output": '{"inputs": ["1"], "outputs": []}'}
    with pytest.raises(InputError, match="has 1 inputs and 0 outputs"):
        read(tmp_path, [row])


def test_a_functional_case_calls_the_function_that_the_row_names(tmp_path: Path) -> None:
    row = {
        "question_content": "Add.",
        "public_test_cases": '[{"input": "1\\n2", "output": "3", "testtype": "functional"}]',
        "starter_code": "class Solution:\n    def add(self, a, b):",
        "metadata": '{"func_name": "add"}',
    }
    assert read(tmp_path, [row])[0].answer == [
        {"call": "Solution.add", "arguments": [1, 2], "expected": 3}
    ]


# --- numbers


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_with_a_gap_stay_whole_after_pandas(tmp_path: Path, kind: str) -> None:
    table = pd.DataFrame(
        {"question": ["a", "b", "c"], "answer": [56, None, 7], "level": [1, 2, None]}
    )
    path = tmp_path / f"pandas.{kind}"
    if kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    rows = {"type": kind, "path": str(path), "columns": {"metadata": ["level"]}}
    from orchestrator.prompts.source import PROMPT_SOURCES

    prompts = create(PROMPT_SOURCES.parse(rows)).load()
    assert [repr(p.answer) for p in prompts] == ["56", "None", "7"]
    assert [repr(p.metadata["level"]) for p in prompts] == ["1", "2", "None"]


def test_floats_stay_floats_where_nothing_says_that_they_were_whole(tmp_path: Path) -> None:
    def answers(*values: Any) -> list[str]:
        rows = [{"question": f"Q{i}", "answer": value} for i, value in enumerate(values)]
        return [repr(prompt.answer) for prompt in read(tmp_path, rows)]

    assert answers(3.0, 4.0) == ["3.0", "4.0"]
    assert answers(3.0, None, 4.5) == ["3.0", "None", "4.5"]
    assert answers(3, None, 4.0) == ["3", "None", "4.0"]
    assert answers("3.0", None) == ["'3.0'", "None"]


def test_pictures_are_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    rows = [{"prompt": "What is it?", "images": ["cat.png"]}]
    with pytest.raises(InputError, match="'images' is not text") as caught:
        read(tmp_path, rows)
    assert len(read(tmp_path, rows, **pasted(str(caught.value)))) == 1
    assert len(read(tmp_path, [{"prompt": "What is it?", "images": []}])) == 1
