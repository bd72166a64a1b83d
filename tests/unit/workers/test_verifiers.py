"""What each verifier reads in a completion, and what it refuses to score."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base.component import create
from policies.base.errors import ConfigurationError, VerificationError
from policies.base.records import (
    Json,
    Message,
    Prompt,
    Sampling,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
    Verdict,
    VerdictStatus,
)
from workers.verify.verifier import VERIFIERS
from workers.verify.verifiers.numeric_match import find_number


def attempt(text: str) -> Trajectory:
    turn = Turn(
        role="policy",
        token_ids=(7, 2),
        text=text,
        logprobs=(-0.5, -0.1),
        stop_reason=StopReason.STOP,
    )
    return Trajectory(
        id="r1.p.0",
        prompt_id="p",
        sample_index=0,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=(1, 5),
        turns=(turn,),
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )


def question(answer: Json = None, **metadata: Json) -> Prompt:
    chat = (Message(role="system", content="Be brief."), Message(role="user", content="7 times 8?"))
    return Prompt(id="p", messages=chat, answer=answer, metadata=metadata)


def judged(config: dict[str, Any] | str, prompt: Prompt, completion: str) -> Verdict:
    verdict: Verdict = create(VERIFIERS.parse(config)).verify(prompt, attempt(completion))
    return verdict


def score(config: dict[str, Any] | str, prompt: Prompt, completion: str) -> float | None:
    return judged(config, prompt, completion).score


# --- numeric_match


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7 times 8 is 56.", "56"),
        ("56", "56"),
        ("It is 1,234,567.5 in all", "1234567.5"),
        ("1,2 and 3", "3"),
        ("so x = -8", "-8"),
        ("10-8", "8"),
        ("x\u22123 is not it, \u22123 is", "-3"),
        ("costs -$5", "-5"),
        ("$1,000", "1000"),
        ("6.02e23", "6.02e23"),
        ("1e-3", "0.001"),
        (".5", "0.5"),
        ("5.", "5"),
        ("about 3 eggs", "3"),
        ("2em", "2"),
        ("1e400", "1e400"),
        ("no number", None),
        ("nan and inf", None),
        ("", None),
    ],
)
def test_the_last_number_is_read(text: str, number: str | None) -> None:
    assert find_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**12), 10**12), st.text(alphabet="abc .,:;!?\n", max_size=30))
@settings(deadline=None)
def test_an_integer_is_read_with_and_without_thousands_commas(number: int, before: str) -> None:
    for written in (str(number), f"{number:,}"):
        assert find_number(f"{before} {written} ...") == number


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(deadline=None)
def test_every_finite_float_is_read_back(number: float) -> None:
    assert find_number(f"= {number!r}") == Decimal(repr(number))


@given(st.text())
@settings(deadline=None)
def test_no_text_breaks_the_number_reader(text: str) -> None:
    last, first = find_number(text), find_number(text, which="first")
    assert (last is None) == (first is None)
    assert last is None or last.is_finite()


def test_first_number_can_be_asked_for() -> None:
    config = {"type": "numeric_match", "which": "first"}
    assert score(config, question(7), "7 times 8 is 56") == 1.0


@pytest.mark.parametrize(
    ("settings", "found", "expected"),
    [
        ({}, "3.14", 0.0),
        ({"absolute_tolerance": 0.01}, "3.14", 1.0),
        ({"relative_tolerance": 0.001}, "3.14", 1.0),
        ({"relative_tolerance": 0.0001}, "3.14", 0.0),
        ({"relative_tolerance": 0.1}, "1e999999999", 0.0),
    ],
)
def test_tolerances(settings: dict[str, Any], found: str, expected: float) -> None:
    assert score({"type": "numeric_match", **settings}, question(3.1416), found) == expected


@pytest.mark.parametrize("answer", [56, 56.0, "56", "so #### 56", "$56"])
def test_answers_may_be_numbers_or_text(answer: Json) -> None:
    assert score("numeric_match", question(answer), "It is 56.") == 1.0


@pytest.mark.parametrize("answer", [None, "", "none", True, [56], {"value": 56}])
def test_an_answer_without_a_number_is_an_error_not_a_zero(answer: Json) -> None:
    with pytest.raises(VerificationError, match="prompt 'p'"):
        judged("numeric_match", question(answer), "56")


# --- exact_match


@pytest.mark.parametrize(
    ("settings", "completion", "expected"),
    [
        ({}, "  Paris \n", 1.0),
        ({}, "paris", 0.0),
        ({"ignore_case": True}, "paris", 1.0),
        ({}, "Paris.", 0.0),
        ({"ignore_punctuation": True}, "Paris.", 1.0),
        ({"where": "last_line"}, "I think it is\nParis\n\n", 1.0),
        ({"where": "contains"}, "It is Paris!", 1.0),
        ({"where": "contains"}, "", 0.0),
        ({}, "\uff30aris", 1.0),
        ({"unicode_compatibility": False}, "\uff30aris", 0.0),
    ],
)
def test_exact_match_options(settings: dict[str, Any], completion: str, expected: float) -> None:
    assert score({"type": "exact_match", **settings}, question("Paris"), completion) == expected


def test_any_of_several_answers_is_exact_enough() -> None:
    assert score("exact_match", question(["UK", "United Kingdom"]), "United  Kingdom") == 1.0
    assert score("exact_match", question(56), "56") == 1.0


# --- regex_match and format_rules


def test_a_pattern_comes_from_the_config_or_from_the_prompt() -> None:
    assert (
        score({"type": "regex_match", "pattern": r"\bfifty\b"}, question(), "It is fifty.") == 1.0
    )
    assert score("regex_match", question(pattern=r"5\d"), "It is 56.") == 1.0
    assert score("regex_match", question(pattern=r"5\d"), "It is 65.") == 0.0
    with pytest.raises(VerificationError, match="no pattern"):
        judged("regex_match", question(), "x")
    with pytest.raises(VerificationError, match="position 0"):
        judged("regex_match", question(pattern="("), "x")


def test_a_group_called_answer_must_hold_the_answer() -> None:
    config = {"type": "regex_match", "pattern": r"Answer: (?P<answer>\d+)"}
    assert score(config, question(56), "Answer: 55. No. Answer: 56") == 1.0
    assert score(config, question(56), "Answer: 57") == 0.0


@pytest.mark.parametrize(
    "config",
    [
        {"type": "regex_match", "pattern": "("},
        {"type": "format_rules", "must_match": ["["]},
        {"type": "format_rules"},
        {"type": "callable", "function": "m:f", "score_range": [1, 1]},
        {"type": "numeric_match", "absolute_tolerance": -1},
        {"type": "numeric_match", "weight": 0},
        {"type": "numeric_match", "weight": float("nan")},
        {"type": "numeric_match", "timeout_seconds": 0},
        {"type": "numeric_match", "tolerance": 1},
    ],
)
def test_bad_settings_are_refused_when_the_config_is_read(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        VERIFIERS.parse(config)


def test_format_rules_score_all_or_a_share() -> None:
    rules = {
        "type": "format_rules",
        "required_tags": ["think"],
        "must_not_match": ["sorry"],
        "max_characters": 40,
    }
    good, half = "<think>7*8</think> 56", "sorry <think>7*8</think> 56"
    assert score(rules, question(), good) == 1.0
    assert score(rules, question(), half) == 0.0
    assert score({**rules, "score": "share"}, question(), half) == pytest.approx(2 / 3)
    assert score(rules, question(), "</think><think>") == 0.0
    assert score({"type": "format_rules", "max_tokens": 1}, question(), "two tokens") == 0.0
    assert score({"type": "format_rules", "max_characters": 9}, question(), "") == 0.0


# --- math_answer and reasoning_gym


@pytest.mark.parametrize(
    ("answer", "completion", "expected"),
    [
        (56, "so it is $56$.", 1.0),
        ("\\frac{1}{2}", "Therefore \\boxed{0.5}", 1.0),
        ("1/2", "the answer is $\\frac{2}{4}$", 1.0),
        ("x^2+1", "$1+x^2$", 1.0),
        ("56", "57", 0.0),
        ("56", "I do not know", 0.0),
        ("56", "", 0.0),
    ],
)
def test_math_answers_are_compared_symbolically(
    answer: Json, completion: str, expected: float
) -> None:
    assert score("math_answer", question(answer), completion) == expected


def test_an_answer_that_is_no_mathematics_is_an_error() -> None:
    with pytest.raises(VerificationError, match="cannot be read as mathematics"):
        judged("math_answer", question("\\"), "56")


def test_reasoning_gym_scores_by_the_generators_own_rules() -> None:
    from orchestrator.prompts.source import PROMPT_SOURCES

    config = PROMPT_SOURCES.parse(
        {"type": "reasoning_gym", "dataset": "chain_sum", "size": 3, "seed": 1}
    )
    for prompt in create(config).load():
        assert score("reasoning_gym", prompt, f"I say <answer>{prompt.answer}</answer>.") == 1.0
        assert score("reasoning_gym", prompt, str(prompt.answer)) == 1.0
        assert score("reasoning_gym", prompt, "<answer>x</answer>") == 0.0
    with pytest.raises(VerificationError, match="reasoning_gym prompt source"):
        judged("reasoning_gym", question(56), "56")


# --- callable


def written(tmp_path: Path, source: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(source, encoding="utf-8")
    return f"{path}:f"


@pytest.mark.parametrize(
    "source",
    [
        "def f(prompt, completion, answer): return prompt == '7 times 8?' and str(answer) in completion",
        "def f(completion, answer): return float(str(answer) in completion)",
        "def f(question, text, truth): return str(truth) in text",
        "def f(a, b, c, d): return str(c) in b and d['level'] == 2",
        "def f(prompt, completion, answer, metadata): return metadata['level'] == 2 and '56' in completion",
        "def f(prompts, completions, answer, **kw): return [float(str(a) in c) for c, a in zip(completions, answer)]",
        "def f(completions, level, **kw): return [float('56' in c and n == 2) for c, n in zip(completions, level)]",
        "async def f(completions, **kw): return [float('56' in c) for c in completions]",
        "def f(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return {'score': float(str(ground_truth) in solution_str), 'acc': 1}",
        "def f(solution_str, ground_truth, **kw): return str(ground_truth) in solution_str",
        "import numpy\ndef f(completion, answer): return numpy.bool_(str(answer) in completion)",
        "class Scorer:\n    def __call__(self, completion, answer): return str(answer) in completion\nf = Scorer()",
    ],
)
def test_functions_of_every_signature_work_unchanged(tmp_path: Path, source: str) -> None:
    reference = written(tmp_path, source)
    prompt = question(56, level=2)
    assert score(reference, prompt, "It is 56.") == 1.0
    assert score(reference, prompt, "It is 65.") == 0.0


def test_trl_functions_can_have_chat_messages_and_another_answer_column(tmp_path: Path) -> None:
    source = (
        "def f(prompts, completions, solution, **kw):\n"
        "    assert prompts[0][-1]['role'] == 'user'\n"
        "    return [float(c[0]['content'] == str(s)) for c, s in zip(completions, solution)]\n"
    )
    config = {
        "type": "callable",
        "function": written(tmp_path, source),
        "conversational": True,
        "answer_column": "solution",
    }
    assert score(config, question(56), "56") == 1.0


def test_none_is_an_abstention_and_a_verdict_is_taken_over(tmp_path: Path) -> None:
    source = (
        "from policies.base.records import Verdict\n"
        "def f(completion, answer):\n"
        "    if completion == 'skip': return None\n"
        "    return Verdict(source='x', trajectory_id='y', status='scored', score=0.25, rationale='so')\n"
    )
    config = {"type": "callable", "function": written(tmp_path, source), "name": "mine"}
    assert judged(config, question(), "skip").status is VerdictStatus.ABSTAINED
    verdict = judged(config, question(), "go")
    assert (verdict.source, verdict.trajectory_id, verdict.score) == ("mine", "r1.p.0", 0.25)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("def f(completion): return float('nan')", r"number in \[0, 1\].*nan"),
        ("def f(completion): return 1.5", r"number in \[0, 1\].*1\.5.*score_range"),
        ("def f(completion): return -0.1", r"number in \[0, 1\]"),
        ("def f(completion): return 'yes'", r"number in \[0, 1\].*str 'yes'"),
        ("def f(completion): return [1.0]", r"number in \[0, 1\].*list"),
        ("def f(completion): return 1j", r"number in \[0, 1\].*complex"),
        ("def f(completions): return [1.0, 0.0]", r"one number .* per completion.*2 items"),
        ("def f(completions): return 1.0", r"list with one number"),
        ("def f(completions): return ['1']", r"number in \[0, 1\]"),
        ("def f(solution_str): return {'acc': 1}", r"key 'score'"),
        ("def f(completions, difficulty): return [1]", r"difficulty.*metadata"),
        ("def f(a, b): return 1", r"cannot be filled in.*f\(prompt, completion, answer"),
    ],
)
def test_rubbish_is_refused_with_what_was_wanted(tmp_path: Path, body: str, wanted: str) -> None:
    with pytest.raises(VerificationError, match=wanted):
        judged(written(tmp_path, body), question(56), "56")


def test_score_range_maps_to_the_unit_interval(tmp_path: Path) -> None:
    reference = written(tmp_path, "def f(completion): return float(completion)")
    config = {"type": "callable", "function": reference, "score_range": [-1, 3]}
    assert score(config, question(), "2") == 0.75
    with pytest.raises(VerificationError, match=r"\[-1, 3\]"):
        judged(config, question(), "4")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_module_here:f", "cannot import 'no_such_module_here'"),
        ("json:no_such_name", "has no 'no_such_name'"),
        ("json:JSONDecoder", "not a function"),
        ("./no_such_file.py:f", "no such file"),
        ("no_such_entry_point", "no such function"),
    ],
)
def test_a_function_that_cannot_be_found_is_named(function: str, message: str) -> None:
    verifier = create(VERIFIERS.parse({"type": "callable", "function": function}))
    with pytest.raises(ConfigurationError, match=message):
        verifier.prepare()
