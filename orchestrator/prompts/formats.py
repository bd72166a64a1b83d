"""Layouts in which data sets are published: which column asks, which holds the truth, and how each is read.

A layout is a class with a name; the first rows choose one (`format_choice.py`), or `format:` in the config does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.prompts.answer_forms import (
    behind_hashes,
    choices_of,
    has_hashes,
    in_box,
    label_of,
    last_boxed,
    shown_choices,
)
from orchestrator.prompts.chats import is_chat
from orchestrator.prompts.code_test_rows import (
    first_solution,
    is_input_output,
    tests_of_cases,
    tests_of_contests,
    tests_of_input_output,
)
from orchestrator.prompts.column_paths import has, look_up
from orchestrator.prompts.row_values import as_json, as_text, parsed
from policies.base.records import Json

Values = Mapping[str, Any]
Paths = Sequence[str]
CHOICES = ("choices", "options")
"""Columns that hold what may be chosen."""


class RowFormat:
    """One layout. Paths are tried in order: the first that a row has is taken."""

    name: str
    asks: tuple[str, ...] = ("prompt", "question", "query", "problem", "instruction")
    """Paths of the question, a text or a chat."""
    answers: tuple[str, ...] = ("answer",)
    """Paths of the ground truth."""
    keeps: tuple[str, ...] = ()
    """Paths to keep as metadata where a row has them."""
    keeps_rest = False
    """Keep all other columns as metadata, too: functions written for this layout ask for them."""
    also_reads: tuple[str, ...] = ()
    """Columns that it reads besides."""
    other_answer = ""
    """What else than the answer column the answer is made of, for messages; empty: the column alone."""
    ends_with_answer = False
    """A chat that ends with the assistant's turn brings its reference answer so; else it would be a prefill."""
    systems: tuple[str, ...] = ()
    """Columns that hold a system message."""

    with_template = True
    """What is asked may come from a template instead."""
    takes_chats = False
    """The question may be a chat."""

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        """Tell whether a row is laid out so, where the question and the answer stand under one of these paths."""
        raise NotImplementedError

    def question(self, row: Values, path: str) -> Any:
        """Return what is asked: text, or a list of messages."""
        return look_up(row, path)

    def solve(self, row: Values, path: str) -> Json:
        """The ground truth in the form that verifiers compare with."""
        return as_json(look_up(row, path), path)

    def extra(self, row: Values) -> dict[str, Json]:
        """Further metadata."""
        return {}


class Verl(RowFormat):
    """verl's rows: data_source, prompt, ability, reward_model, extra_info."""

    name = "verl"
    asks = ("prompt",)
    answers = ("reward_model.ground_truth",)
    keeps = ("data_source", "ability", "extra_info")
    takes_chats = True

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        return has(row, "reward_model.ground_truth") and "data_source" in row and _any(row, asks)


class Apps(RowFormat):
    """APPS and TACO: question, input_output[, starter_code, solutions]."""

    name = "apps"
    asks = ("question", "prompt", "problem", "description")
    answers = ("input_output",)
    also_reads = ("starter_code", "solutions")
    other_answer = "as tests"

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        return any(is_input_output(get(row, path)) for path in answers) and _any(row, asks)

    def question(self, row: Values, path: str) -> Any:
        return _with_starter(look_up(row, path), row)

    def solve(self, row: Values, path: str) -> Json:
        return tests_of_input_output(look_up(row, path), row.get("starter_code"), path)

    def extra(self, row: Values) -> dict[str, Json]:
        solution = first_solution(row.get("solutions"))
        return {} if solution is None else {"solution": solution}


class CodeContests(RowFormat):
    """CodeContests: description, public_tests, private_tests, generated_tests."""

    name = "code_contests"
    asks = ("description", "problem", "question", "prompt")
    answers = ("public_tests",)
    also_reads = ("private_tests", "generated_tests")
    other_answer = "as tests, with private_tests and generated_tests"

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        return bool(row.get("public_tests")) and "public_tests" in answers and _any(row, asks)

    def solve(self, row: Values, path: str) -> Json:
        return tests_of_contests(row)


class LiveCodeBench(RowFormat):
    """LiveCodeBench: question_content, public_test_cases, metadata.func_name; packed private tests are not read."""

    name = "livecodebench"
    asks = ("question_content", "question", "prompt")
    answers = ("public_test_cases",)
    also_reads = ("starter_code", "metadata")
    other_answer = "as tests"

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        told = bool(row.get("public_test_cases")) and "public_test_cases" in answers
        return told and _any(row, asks)

    def question(self, row: Values, path: str) -> Any:
        return _with_starter(look_up(row, path), row)

    def solve(self, row: Values, path: str) -> Json:
        metadata = parsed(row.get("metadata"), "metadata")
        function = metadata.get("func_name") if isinstance(metadata, Mapping) else None
        return tests_of_cases(look_up(row, path), row.get("starter_code"), function, path)


class MultipleChoice(RowFormat):
    """ARC, MMLU, CommonsenseQA, OpenBookQA, AQuA: a question, choices, and the letter, position or text of one."""

    name = "multiple_choice"
    asks = ("question", "question_stem", "prompt")
    answers = ("answerKey", "answer", "answer_index", "correct", "label")
    other_answer = "as the letter of the right choice"
    with_template = False

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        return (
            isinstance(row.get(self._column(row)), (list, Mapping))
            and _any(row, asks)
            and _any(row, answers)
        )

    def question(self, row: Values, path: str) -> Any:
        return f"{as_text(look_up(row, path), path)}\n\n{shown_choices(self._choices(row))}"

    def solve(self, row: Values, path: str) -> Json:
        return label_of(look_up(row, path), self._choices(row), path)

    def _column(self, row: Values) -> str:
        return next((c for c in CHOICES if c in row), "choices")

    def _choices(self, row: Values) -> dict[str, str]:
        column = self._column(row)
        return choices_of(look_up(row, column), column)


class Gsm8k(RowFormat):
    """GSM8K and its kin: a worked answer that ends with `#### 72`."""

    name = "gsm8k"
    other_answer = "what stands behind ####"
    answers = ("answer", "solution")

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        return any(has_hashes(get(row, path)) for path in answers) and not _asks_chat(row, asks)

    def solve(self, row: Values, path: str) -> Json:
        return behind_hashes(look_up(row, path), path)

    def extra(self, row: Values) -> dict[str, Json]:
        worked = next((row[p] for p in self.answers if has_hashes(row.get(p))), None)
        return {} if worked is None else {"solution": as_json(worked, "solution")}


class Maths(RowFormat):
    r"""MATH, NuminaMath, DeepScaleR: a problem with an answer, or with a solution whose answer is in \boxed{}."""

    name = "math"
    asks = ("problem", "question", "prompt")
    answers = ("answer", "solution")
    also_reads = ("solution",)
    other_answer = r"what stands in the last \boxed{}, where there is one"

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        if _asks_chat(row, asks):
            return False
        if not set(answers) <= set(self.answers):
            return any(last_boxed(get(row, path)) is not None for path in answers)
        by_problem = "problem" in asks and "problem" in row
        if "answer" in answers and self._is_told(row.get("answer")):
            return by_problem
        boxed = "solution" in answers and last_boxed(row.get("solution")) is not None
        return boxed and (by_problem or ("question" in asks and "question" in row))

    def solve(self, row: Values, path: str) -> Json:
        value = look_up(row, path)
        if path != "answer":
            return in_box(value, path)
        if self._is_told(value):
            return last_boxed(value) or as_json(value, path)
        return in_box(look_up(row, "solution"), "solution")

    def extra(self, row: Values) -> dict[str, Json]:
        solution = row.get("solution")
        return {"solution": solution} if isinstance(solution, str) and solution.strip() else {}

    @staticmethod
    def _is_told(value: Any) -> bool:
        return value is not None and (not isinstance(value, str) or bool(value.strip()))


class Alpaca(RowFormat):
    """Alpaca: instruction, input, output."""

    name = "alpaca"
    asks = ("instruction",)
    answers = ("output", "response")
    also_reads = ("input",)
    systems = ("system",)
    with_template = False

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        return "instruction" in asks and "instruction" in row and "input" in row

    def question(self, row: Values, path: str) -> Any:
        more = row.get("input")
        asked = as_text(look_up(row, path), path)
        return f"{asked}\n\n{more}" if isinstance(more, str) and more.strip() else asked


class Trl(RowFormat):
    """TRL: a prompt that is a chat, or one with `solution` or `ground_truth` beside it; columns go to functions."""

    name = "trl"
    asks = ("prompt",)
    answers = ("answer", "solution", "ground_truth", "final_answer", "target", "label")
    keeps_rest = True
    takes_chats = True

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        told = "answer" not in row and _any(row, answers)
        return "prompt" in asks and "prompt" in row and (is_chat(row["prompt"]) or told)


class ShareGpt(RowFormat):
    """ShareGPT: conversations of {from, value}."""

    name = "sharegpt"
    asks = ("conversations", "conversation", "messages")
    takes_chats = True
    with_template = False
    ends_with_answer = True
    systems = ("system", "system_prompt")

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        return any(_is_style(get(row, path), "from") for path in asks)


class OpenAi(RowFormat):
    """OpenAI's and TRL's chats: messages of {role, content}; with preferences alone, the chosen side."""

    name = "openai"
    asks = ("messages", "conversations", "conversation", "chosen")
    takes_chats = True
    with_template = False
    ends_with_answer = True

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        return any(_is_style(get(row, path), "role") for path in asks)


class Plain(RowFormat):
    """A question and an answer, as they stand."""

    name = "plain"
    takes_chats = True

    def fits(self, row: Values, asks: Paths, answers: Paths) -> bool:
        return True


FORMATS: tuple[RowFormat, ...] = (
    Verl(),
    Apps(),
    CodeContests(),
    LiveCodeBench(),
    MultipleChoice(),
    Gsm8k(),
    Maths(),
    Trl(),
    ShareGpt(),
    OpenAi(),
    Alpaca(),
    Plain(),
)
"""In the order in which they are tried."""


def get(row: Values, path: str) -> Any:
    """Return what the path leads to, or None where it leads nowhere."""
    return look_up(row, path) if has(row, path) else None


def _any(row: Values, paths: Paths) -> bool:
    return any(has(row, path) for path in paths)


def _asks_chat(row: Values, asks: Paths) -> bool:
    return any(is_chat(get(row, path)) for path in asks)


def _is_style(value: Any, key: str) -> bool:
    return is_chat(value) and key in value[0]


def _with_starter(question: Any, row: Values) -> Any:
    """The question with the code that a solution must begin with: without its names no test can call it."""
    starter = row.get("starter_code")
    if isinstance(question, str) and isinstance(starter, str) and starter.strip():
        return f"{question}\n\n```python\n{starter}\n```"
    return question
