"""Mathematical answers: what is right however it is written, what is wrong however it looks, what is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import VerificationError
from policies.base.records import Json, Message, Prompt
from tests.support.attempts import attempt
from workers.verify.verifier import VERIFIERS, Verifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[Any]:
    """One for all tests: its process imports sympy."""
    made: Any = create(
        VERIFIERS.parse({"type": "math_answer", "step_seconds": 1, "timeout_seconds": 300})
    )
    yield made
    made._symbolic.close()


def question(gold: Json) -> Prompt:
    return Prompt(id="p", messages=(Message(role="user", content="?"),), answer=gold)


def score(verifier: Verifier, gold: Json, text: str) -> float | None:
    verifier.check_prompt(question(gold))
    found: float | None = verifier.verify(question(gold), attempt(text)).score
    return found


RIGHT: tuple[tuple[Json, str], ...] = (
    # the same number, written and announced in many ways
    ("56", "\\boxed{56.}"),
    ("56", "\\boxed{56,}"),
    ("56", "= 56"),
    ("56", "56%"),
    ("56", "\\text{56}"),
    ("56", "$56$"),
    ("56", "**56**"),
    ("56", "**Answer:** 56"),
    ("56", "**Final Answer**\n\n56"),
    ("56", "Answer: \\(56\\)"),
    ("56", "\\[ x = 56 \\]"),
    ("56", "#### 56"),
    ("56", "It is 56!"),
    ("56", "\u7b54\u6848\u662f56\u3002"),
    ("56", "\u7b54\u6848\uff1a56\u3001"),
    ("56", "\u6240\u4ee5\u7b54\u6848\u662f 56 \u5143\u3002"),
    ("56", "La respuesta es 56."),
    ("56", "<answer>56</answer>"),
    ("56", "<think>57?</think>So <answer>56 pears</answer>"),
    ("56", "First \\boxed{54}, then \\boxed{55}; so it must be \\boxed{56}"),
    ("56", "\\boxed{56}\n\\boxed{56}"),
    ("2", "The answer is 2, because 3 is odd."),
    ("2", "The answer is 2. I needed 3 steps."),
    ("1234567", "1,234,567"),
    ("1234567", "\\boxed{1{,}234{,}567}"),
    ("1234567", "1 234 567"),
    ("\uff15\uff16", "56"),
    ("3", "\u0663"),
    # signs
    ("-7", "x = \u22127"),
    ("-7", "It is \u20137."),
    ("5", "10-5"),
    # degrees, money, units
    ("90", "The angle is 90\u00b0."),
    ("90^\\circ", "\\boxed{90}"),
    ("90", "\\boxed{90^{\\circ}}"),
    ("\\$18", "He pays $18.00."),
    ("18", "$18$ dollars"),
    ("1,250.50", "\\$1,250.50"),
    ("5 cm", "\\boxed{5\\text{ cm}}"),
    ("5 cm", "5"),
    ("9", "The area is 9 m^2."),
    ("12 apples", "\\boxed{12}"),
    ("50\\%", "0.5"),
    ("0.5", "50%"),
    # fractions, roots, powers, exponents
    ("\\frac{3}{4}", "\\boxed{\\dfrac{3}{4}}"),
    ("\\frac{3}{4}", "\\boxed{\\frac34}"),
    ("\\frac{3}{4}", "0.75"),
    ("-\\frac{1}{2}", "\\boxed{\\frac{-1}{2}}"),
    ("1\\frac{1}{2}", "\\boxed{1.5}"),
    ("1.5", "1\u00bd"),
    ("1/3", "0.333333"),
    ("\\sqrt{2}", "\\boxed{\u221a2}"),
    ("3\\sqrt{2}", "\\boxed{\\sqrt{18}}"),
    ("\\sqrt{2}", "\\boxed{1.41421356}"),
    ("2\\pi", "\\boxed{2\u03c0}"),
    ("x^2", "x\u00b2"),
    ("4e8", "\\boxed{400000000}"),
    (1e16, "\\boxed{10^{16}}"),
    (0.00005, "5 \\times 10^{-5}"),
    (0.00005, "\\boxed{0.00005}"),
    ("1.6e-19", "\\boxed{1.6\\times 10^{-19}}"),
    ("10^{-8}", "0.00000001"),
    ("10!", "\\boxed{3628800}"),
    (56.0, "56"),
    (56, "56.0"),
    # expressions
    ("2x+1", "\\boxed{1+2x}"),
    ("x^2-1", "$(x-1)(x+1)$"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("3+4i", "\\boxed{4i+3}"),
    ("\\frac{x}{y}", "\\boxed{x/y}"),
    ("\\infty", "\\boxed{\u221e}"),
    ("\\pm 2", "\\boxed{\u00b12}"),
    # lists, tuples, intervals, matrices, bases
    ("1331 and 1728", "The answers are 1331 and 1728"),
    ("3, 4", "4, 3"),
    ("\\{3, 4\\}", "\\boxed{4} and \\boxed{3}"),
    ("(3,4)", "\\boxed{(3, 4)}"),
    ("[0,2]", "\\boxed{0 \\le x \\le 2}"),
    ("(-1,1)", "\\boxed{-1<x<1}"),
    ("(0,\\infty)", "\\boxed{x>0}"),
    ("\\begin{pmatrix}1&2\\end{pmatrix}", "\\boxed{\\begin{pmatrix}1&2\\end{pmatrix}}"),
    ("101_2", "\\boxed{101_{\\text{two}}}"),
    ("101_2", "\\boxed{101}"),
    # choices and words
    ("(B)", "The answer is (B)."),
    ("B", "**B**"),
    ("B", "(B) 56"),
    ("B", "The correct option is B."),
    ("B", "\\boxed{\\text{(B)}}"),
    ("C", "Answer: **C. Paris**"),
    ("yes", "Yes."),
    ("Paris", "The answer is Paris."),
    ("\\text{no solution}", "There is \\boxed{\\text{no solution}}"),
    ("July 20", "July 20"),
    ("3:30", "\\boxed{3:30}"),
    ("5 red, 3 blue", "3 blue and 5 red"),
)

WRONG: tuple[tuple[Json, str], ...] = (
    ("56", ""),
    ("56", "no idea"),
    ("56", "156"),
    ("56", "5 6"),
    ("56", "\\boxed{}"),
    ("56", "The answer is not 56."),
    ("56", "56 is not the answer"),
    ("56", "<think>\\boxed{56}"),
    ("56", "<think>\\boxed{56}</think>I cannot say."),
    ("56", "<think>\\boxed{56}</think>The answer is 57."),
    ("56", "\\boxed{55}, \\boxed{56}"),
    ("56", "\\boxed{55} or \\boxed{56}"),
    ("56", "It is 55, 56 or 57"),
    ("5", "\\boxed{-5}"),
    ("-5", "5"),
    ("5", "2-7"),
    ("0.5", "50"),
    ("0.0000003", "0.0000004"),
    ("0", "0.0000001"),
    ("0.0000001", "0"),
    ("10^{-8}", "\\boxed{10^{-9}}"),
    ("6.02 \\cdot 10^{23}", "6.03 \\times 10^{23}"),
    ("1000000", "1000001"),
    ("1000", "1.000"),
    ("1/3", "0.33"),
    ("\\sqrt{2}", "\\boxed{1.41}"),
    ("3.14", "The answer is 3.15."),
    ("yes", "\\boxed{sey}"),
    ("ab", "ba"),
    ("Paris", "Rapis"),
    ("no", "on"),
    ("True", "\\boxed{False}"),
    ("B", "C"),
    ("B", "I find B tempting, but the answer is C."),
    ("A", "A dog barks. The answer is (C)"),
    ("5 cm", "5 m"),
    ("12 apples", "12 pears"),
    ("2, \\text{Ann}", "\\boxed{2, \\text{Ben}}"),
    ("5 red, 3 blue", "5 blue, 3 red"),
    ("101_2", "\\boxed{101_3}"),
    ("4_5", "\\boxed{4_6}"),
    ("1331 and 1728", "\\boxed{1728}"),
    ("(1,2)", "\\boxed{(2,1)}"),
    ("[0,1)", "[0,1]"),
    ("2", "\\boxed{\\pm 2}"),
    ("2", "\\boxed{x}"),
    ("i", "\\boxed{-i}"),
    ("-\\infty", "\\boxed{\\infty}"),
    ("y=2x+1", "\\boxed{y=2x-1}"),
    ("July 20", "June 20"),
    ("3:30", "4:30"),
    ("2024-05-03", "2016"),
)

UNCOMPUTABLE = (
    "10^(10^10)",
    "\\boxed{10^{10^{10}}}",
    "\\boxed{9^{9^{9^9}}}",
    "\\boxed{99999999!}",
    "\\boxed{((9!)!)!}",
    "\\boxed{" + "(" * 500 + "1" + ")" * 500 + "}",
    "\\boxed{" + "{" * 3000 + "}" * 3000 + "}",
    "\\boxed{" + "9" * 100_000 + "}",
    "\\boxed{" + "\\frac{1}{" * 200 + "2" + "}" * 200 + "}",
    "1e999999999",
    "1e99999999999999999999",
    "\\boxed{2^{3000000}}",
    "\\boxed{(2^{9999})^{9999}}",
    "\\boxed{\\prod_{n=1}^{100000000} n}",
    "\\boxed{\\binom{99999999}{4999999}}",
    "\\boxed{\\int_0^{\\infty} e^{x^x} dx}",
    "\\boxed{\\sum_{n=1}^{\\infty} n}",
    "\\boxed{\\mathbb{R}}",
    "\\boxed{\\{x | x > 0\\}}",
    "\\boxed{\\frac{1}{0}}",
    "\\boxed{0^0}",
    "\\boxed{1/0}",
    "\\boxed{NaN}",
    "\\boxed{\\lim_{x \\to 0} x^{x^{x^x}}}",
    "\\boxed{__import__('os').abort()}",
    "\\boxed{\\ud800}",
    "\x00\\boxed{\x1b[31m}",
)


@pytest.mark.parametrize(("gold", "text"), RIGHT)
def test_a_right_answer_is_right_however_it_is_written(
    verifier: Verifier, gold: Json, text: str
) -> None:
    assert score(verifier, gold, text) == 1.0


@pytest.mark.parametrize(("gold", "text"), WRONG)
def test_a_wrong_answer_is_wrong_however_it_looks(
    verifier: Verifier, gold: Json, text: str
) -> None:
    assert score(verifier, gold, text) == 0.0


@pytest.mark.parametrize("text", UNCOMPUTABLE, ids=range(len(UNCOMPUTABLE)))
def test_an_answer_that_cannot_be_computed_is_wrong_and_no_error(
    verifier: Verifier, text: str
) -> None:
    assert score(verifier, "x+1" if "x" in text else "56", text) == 0.0


@pytest.mark.parametrize(
    "gold",
    [
        None,
        "",
        "  ",
        "\\",
        "...",
        [1],
        {"value": 1},
        "\\frac{1}{",
        "2 +",
        "10^{10^{10}}",
        "99999999!",
        "the one that stands left of the house with the red door",
    ],
)
def test_a_ground_truth_that_cannot_be_compared_is_refused_before_the_run(
    verifier: Verifier, gold: Json
) -> None:
    with pytest.raises(VerificationError, match="prompt 'p'"):
        verifier.check_prompt(question(gold))


def test_the_verifier_that_a_refusal_names_takes_the_answer() -> None:
    gold = "the one that stands left of the house with the red door"
    named = {"type": "exact_match", "where": "contains"}
    with pytest.raises(VerificationError, match=r"use \{type: exact_match, where: contains\}"):
        create(VERIFIERS.parse("math_answer")).check_prompt(question(gold))
    other: Verifier = create(VERIFIERS.parse(named))
    assert score(other, gold, f"It is {gold}.") == 1.0


def test_a_ground_truth_that_sympy_cannot_read_is_an_error_and_blames_no_answer(
    verifier: Verifier,
) -> None:
    for text in ("\\boxed{x}", "\\boxed{\\binom{99999999}{4999999}}"):
        with pytest.raises(VerificationError, match="ground truth cannot be computed"):
            score(verifier, "\\binom{99999998}{4999998}", text)


def test_how_close_decimals_must_be_is_a_setting() -> None:
    loose: Verifier = create(VERIFIERS.parse({"type": "math_answer", "decimal_places": 2}))
    assert score(loose, "0.3333", "0.332") == 1.0
    assert score(loose, "0.3333", "0.31") == 0.0
    assert score(loose, "1000000", "1000001") == 0.0


_PIECES = (
    *(
        "so 56 ",
        "5",
        "answer is not ",
        "answer is ",
        "$",
        "\\(",
        "(",
        "{",
        "\\text{",
        "1,",
        "1 000 ",
        "B ",
    ),
    *(
        "\\frac{",
        "^",
        "1/",
        "-",
        "\\boxed{",
        "\\boxed{1},",
        "<answer>",
        "<think></think>",
        "x=1,",
        "cm/",
    ),
)


@pytest.mark.parametrize("piece", _PIECES)
def test_a_text_of_one_piece_again_and_again_is_judged_at_once(
    verifier: Verifier, piece: str
) -> None:
    started = time.process_time()
    verifier.verify(question("(1, 2)"), attempt(piece * 20_000))
    assert time.process_time() - started < 4.0
