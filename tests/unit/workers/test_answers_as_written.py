"""Numbers, texts, code and patterns as answers: what counts as the same, what is refused, what a cut attempt scores."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import VerificationError
from policies.base.records import (
    Ending,
    Json,
    Message,
    Prompt,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from tests.support.attempts import attempt
from workers.isolation.forked_call import call_in_copy
from workers.verify.verifier import VERIFIERS, Verifier
from workers.verify.verifiers.numeric_match import only_number


def made(config: dict[str, Any] | str) -> Verifier:
    verifier: Verifier = create(VERIFIERS.parse(config))
    return verifier


def question(answer: Json, **metadata: Json) -> Prompt:
    messages = (Message(role="user", content="?"),)
    return Prompt(id="p", messages=messages, answer=answer, metadata=metadata)


def score(config: dict[str, Any] | str, gold: Json, said: Trajectory | str) -> float | None:
    verifier, prompt = made(config), question(gold)
    verifier.check_prompt(prompt)
    return verifier.verify(prompt, attempt(said) if isinstance(said, str) else said).score


def turned(text: str, stop: StopReason, opened: str = "") -> Trajectory:
    cut = stop is StopReason.LENGTH
    turn = Turn(
        role="policy",
        token_ids=(7,),
        text=text,
        logprobs=(-1.0,),
        stop_reason=stop,
        opened_thought=opened,
    )
    return attempt(
        "",
        turns=(turn,),
        status=TrajectoryStatus.TRUNCATED if cut else TrajectoryStatus.COMPLETE,
        ending=Ending.TOKEN_LIMIT if cut else Ending.ANSWERED,
    )


def cut(text: str) -> Trajectory:
    return turned(text, StopReason.LENGTH)


# --- numeric_match


@pytest.mark.parametrize(
    ("gold", "number"),
    [
        ("56", "56"),
        ("56.", "56"),
        ("56.0", "56"),
        ("$56", "56"),
        ("$ 56", "56"),
        ("-$5", "-5"),
        ("\u20ac1,250.50", "1250.5"),
        ("1,234", "1234"),
        ("1,234,567", "1234567"),
        ("1 000", "1000"),
        ("1\u202f000\u202f000", "1000000"),
        ("1'000", "1000"),
        ("10{,}080", "10080"),
        ("10\\,080", "10080"),
        ("-5", "-5"),
        ("- 5", "-5"),
        ("\u22125", "-5"),
        ("+5", "5"),
        (".5", "0.5"),
        ("007", "7"),
        ("1e3", "1000"),
        ("5e-05", "0.00005"),
        ("\u0665\u0666", "56"),
        ("\uff15\uff16", "56"),
        ("#### 8", "8"),
        ("He has 5+3=<<5+3=8>>8 eggs.\n#### 8", "8"),
        ("5 + 3 = 8", "8"),
        ("x = -5", "-5"),
        ("Total: 12", "12"),
        ("The answer is 12", "12"),
        ("So the answer is: 12.", "12"),
        ("\\boxed{72}", "72"),
        ("$72$", "72"),
    ],
)
def test_a_ground_truth_that_is_one_number_is_read(gold: str, number: str) -> None:
    assert only_number(gold) == Decimal(number)


@pytest.mark.parametrize(
    "gold",
    [
        "1/2",
        "3 1/2",
        "\\frac{3}{4}",
        "x = 1/2",
        "10^6",
        "3 \\times 10^{8}",
        "2**8",
        "3:30",
        "12:00:05",
        "2024-05-03",
        "3/5/2024",
        "July 20",
        "20 July",
        "3 and 4",
        "5 or 6",
        "5, 6",
        "(3, 4)",
        "2-5",
        "5-6",
        "\u00b15",
        "2 m^2",
        "5 cm",
        "5 apples",
        "50%",
        "7 times",
        "12 (in 2 steps)",
        "5 red, 3 blue",
        "H2O",
        "three",
        "1,23",
        "1.234,5",
        "1,000,00",
        "1_000",
        "101_2",
        "room 12",
        "nan",
        "inf",
        "",
        "5)",
        "#### 1/2",
    ],
)
def test_a_ground_truth_that_is_more_or_less_than_one_number_is_refused(gold: str) -> None:
    assert only_number(gold) is None
    with pytest.raises(VerificationError, match="prompt 'p'"):
        made("numeric_match").check_prompt(question(gold))


@pytest.mark.parametrize(
    ("gold", "named"),
    [
        ("1/2", {"type": "math_answer"}),
        ("10^6", {"type": "math_answer"}),
        ("5 cm", {"type": "math_answer"}),
        ("July 20", {"type": "exact_match", "where": "contains"}),
        ("3:30", {"type": "exact_match", "where": "contains"}),
    ],
)
def test_the_verifier_that_a_refused_number_is_sent_to_takes_it(
    gold: str, named: dict[str, Any]
) -> None:
    with pytest.raises(VerificationError) as refusal:
        made("numeric_match").check_prompt(question(gold))
    pasted = "{" + ", ".join(f"{key}: {value}" for key, value in named.items()) + "}"
    assert pasted in str(refusal.value)
    assert score(named, gold, f"The answer is {gold}.") == 1.0


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("10080", "So \\boxed{10{,}080}.", 1.0),
        ("10080", "It is 10\u202f080 in all.", 1.0),
        ("10080", "It is 10,080 in all.", 1.0),
        ("56", "\\boxed{56}. I checked it in 3 ways.", 1.0),
        ("56", "<answer>56</answer> and not 57", 1.0),
        ("56", "<think>55, 56, 57</think>It is 56", 1.0),
        ("56", "<think>It is 56", 0.0),
        ("56", "<think>It is 56</think>No idea.", 0.0),
        ("56", "<think>It is 56</think>It is 57.", 0.0),
        ("56", "It is 57", 0.0),
        ("5", "2-5", 1.0),
        ("9", "The area is 9 m^2", 1.0),
        ("9", "The area is $9 \\text{ cm}^{2}$", 1.0),
        ("-5", "2-5", 0.0),
    ],
)
def test_the_number_of_an_answer_is_not_that_of_its_thoughts(
    gold: str, text: str, expected: float
) -> None:
    assert score("numeric_match", gold, text) == expected


# --- what a cut attempt scores, and what of an attempt is read


@pytest.mark.parametrize(
    ("config", "gold", "said"),
    [
        ("numeric_match", 56, "7 times 8 is 56. To see why,"),
        ("math_answer", 56, "The answer is 56. To see"),
        ({"type": "exact_match", "where": "contains"}, "Paris", "It is Paris, the cap"),
        ({"type": "regex_match", "pattern": "Paris"}, None, "It is Paris, the cap"),
        ({"type": "format_rules", "must_match": ["Paris"]}, None, "It is Paris, the cap"),
        (
            {"type": "code_tests"},
            [{"call": "f", "expected": 1}],
            "```python\ndef f(): return 1\n",
        ),
    ],
)
def test_an_attempt_that_was_cut_scores_nothing(
    config: dict[str, Any] | str, gold: Json, said: str
) -> None:
    assert score(config, gold, cut(said)) == 0.0


@pytest.mark.parametrize(
    ("config", "gold", "said"),
    [
        ("numeric_match", 56, "So \\boxed{56}. To see why,"),
        ("numeric_match", 56, "<answer>56</answer> Now that"),
        ("math_answer", 56, "<think>hm</think>So \\boxed{56}. To see why,"),
        ("exact_match", "Paris", "<answer>Paris</answer> Now that"),
        (
            {"type": "code_tests"},
            [{"call": "f", "expected": 1}],
            "```python\ndef f(): return 1\n```\nThis fun",
        ),
    ],
)
def test_a_whole_answer_in_a_cut_attempt_counts(
    config: dict[str, Any] | str, gold: Json, said: str
) -> None:
    assert score(config, gold, cut(said)) == 1.0


def test_who_wants_reads_cut_attempts_and_thoughts() -> None:
    read = {"type": "numeric_match", "unfinished": "read"}
    assert score(read, 56, cut("7 times 8 is 56. To see why,")) == 1.0
    assert score(read, 56, cut("<think>7 times 8 is 56")) == 0.0
    everything = {"type": "numeric_match", "reads": "everything"}
    assert score(everything, 56, "<think>7 times 8 is 56") == 1.0
    assert score(everything, 56, cut("<think>7 times 8 is 56")) == 0.0
    assert score(everything | read, 56, cut("<think>7 times 8 is 56")) == 1.0


def test_a_step_is_graded_as_it_was_written_also_inside_a_thought() -> None:
    step = {"type": "regex_match", "pattern": "56", "level": "step"}
    assert score(step, None, "<think>7 times 8 is 56") == 1.0


# --- exact_match


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("5", "It costs $15.", 0.0),
        ("5", "It costs 5.20", 0.0),
        ("5", "It costs 1,5", 0.0),
        ("5", "It is -5", 0.0),
        ("5", "50 or 15 or 5a", 0.0),
        ("5", "It costs $5.", 1.0),
        ("5", "15, no, 5", 1.0),
        ("-5", "It is -5.", 1.0),
        ("cat", "concatenate", 0.0),
        ("cat", "a cat!", 1.0),
        ("July 20", "on July 20.", 1.0),
        ("July 2", "on July 20.", 0.0),
        ("$5", "It costs $5.", 1.0),
        ("\u5317\u4eac", "\u7b54\u6848\u662f\u5317\u4eac\u3002", 1.0),
        (56.0, "It is 56.", 1.0),
        (56.0, "It is 56.0", 1.0),
        (56.5, "It is 56.5", 1.0),
        (56.5, "It is 56", 0.0),
        (0.00005, "It is 0.00005", 1.0),
        (1e16, "It is 10000000000000000", 1.0),
        (56, "It is 56", 1.0),
        (True, "true", 1.0),
        (["UK", 5.0], "It is 5", 1.0),
    ],
)
def test_a_part_is_a_whole_word_or_number(gold: Json, text: str, expected: float) -> None:
    assert score({"type": "exact_match", "where": "contains"}, gold, text) == expected


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        (56.0, "56", 1.0),
        (56.0, "56.0", 1.0),
        ("56.0", "56", 0.0),
        ("Paris", "<think>Rome?</think>\n\nParis", 1.0),
        ("Paris", "<think>Paris</think>\n\nRome", 0.0),
        ("Paris", "<answer> Paris </answer>", 1.0),
        ("Paris", "It is <answer>Paris</answer>, I think.", 1.0),
        ("Paris", "<think>Paris", 0.0),
    ],
)
def test_a_number_from_a_column_with_a_gap_and_an_answer_in_tags_are_met(
    gold: Json, text: str, expected: float
) -> None:
    assert score("exact_match", gold, text) == expected


# --- format_rules, regex_match, code_tests


def test_an_opening_that_the_template_wrote_is_part_of_the_format() -> None:
    rules = {"type": "format_rules", "required_tags": ["think"]}
    told = turned("I add.\n</think>\nIt is 5.", StopReason.STOP, "<think>")
    assert score(rules, None, told) == 1.0
    assert score(rules, None, "<think>I add.\n</think>\nIt is 5.") == 1.0
    assert score(rules, None, "I add.\n</think>\nIt is 5.") == 0.0
    twice = turned("<think>I add.\n</think>\nIt is 5.", StopReason.STOP, "<think>")
    assert score(rules, None, twice) == 0.0


def test_a_pattern_is_not_found_in_thoughts() -> None:
    config = {"type": "regex_match", "pattern": r"answer: (?P<answer>\d+)"}
    assert score(config, "5", "<think>answer: 4</think>answer: 5") == 1.0
    assert score(config, "4", "<think>answer: 4</think>I give up") == 0.0


def test_code_in_thoughts_is_not_run_and_whole_numbers_equal_their_floats() -> None:
    tests: Json = [{"call": "f", "expected": 3.0}]
    wrong, right = (f"```python\ndef f(): return {n}\n```" for n in (4, 3))
    assert score("code_tests", tests, f"<think>{wrong}</think>{right}") == 1.0
    assert score("code_tests", tests, f"<think>{right}</think>{wrong}") == 0.0
    assert score("code_tests", tests, f"<think>{right}</think>I am done.") == 0.0
    by_type = {"type": "code_tests", "numbers": "by_type"}
    assert score(by_type, tests, right) == 0.0


# --- reasoning_gym


@pytest.fixture(scope="module")
def factors() -> Prompt:
    from orchestrator.prompts.source import PROMPT_SOURCES

    config = {"type": "reasoning_gym", "dataset": "prime_factorization", "size": 1, "seed": 7}
    prompt: Prompt = create(PROMPT_SOURCES.parse(config)).load()[0]
    return prompt


@pytest.mark.parametrize("said", ["zzz", "1/0", "9**9**9", "(" * 2000, "\x00", "2 \u00d7 x"])
def test_garbage_on_which_a_scorer_raises_is_a_zero(factors: Prompt, said: str) -> None:
    verifier = made("reasoning_gym")
    assert verifier.verify(factors, attempt(f"<answer>{said}</answer>")).score == 0.0
    assert verifier.verify(factors, attempt(f"<answer>{factors.answer}</answer>")).score == 1.0
    assert verifier.verify(factors, attempt(f"<think>{factors.answer}")).score == 0.0


def test_a_scorer_that_raises_on_the_data_sets_own_answer_is_an_error(factors: Prompt) -> None:
    entry = factors.metadata["entry"]
    assert isinstance(entry, dict)
    broken = {**entry, "answer": "broken", "metadata": {"source_index": -1}}
    prompt = factors.model_copy(update={"metadata": {**factors.metadata, "entry": broken}})
    with pytest.raises(VerificationError, match="fails on the data set's own answer"):
        made("reasoning_gym").verify(prompt, attempt("<answer>zzz</answer>"))


def test_a_copy_that_computes_for_ever_ends_and_one_that_waits_is_an_error() -> None:
    import time

    def endless() -> float:
        return float(len(str(9**9**9)))

    def waiting() -> float:
        time.sleep(60)
        return 1.0

    assert call_in_copy(lambda: 0.25, cpu_seconds=1, wall_seconds=60) == 0.25
    assert call_in_copy(lambda: float("nan"), cpu_seconds=1, wall_seconds=60) is None
    assert call_in_copy(lambda: 1 / 0, cpu_seconds=1, wall_seconds=60) is None
    assert call_in_copy(endless, cpu_seconds=1, wall_seconds=120) is None
    with pytest.raises(VerificationError, match="no time"):
        call_in_copy(waiting, cpu_seconds=1, wall_seconds=0.2)
