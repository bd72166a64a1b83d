"""Run the code of a completion in a sandbox, on inputs of the prompt; compare what comes out, outside the sandbox."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from policies.base.attempt_answer import answer_of
from policies.base.bounds import MAX_SCORE, MAX_SECONDS
from policies.base.errors import SandboxUnavailableError, VerificationError, explain
from policies.base.records import Json, Prompt, Record, Trajectory, Verdict
from policies.base.requirements import Requirements
from workers.sandbox.sandbox import Sandbox, hide_memory
from workers.sandbox.settings import CallResult, SandboxSettings, SandboxStatus
from workers.verify.answer_verifier import AnswerVerifier

SPARE_SECONDS = 10.0
"""Beyond its tests a verdict needs this much: starting a process again, killing one."""
MAX_RATIONALE_CHARACTERS = 300


class CallTest(Record):
    """Call a function. Example: `{"call": "add", "arguments": [1, 2], "expected": 3}`; `Class.method` works, too."""

    call: str
    arguments: tuple[Json, ...] = ()
    expected: Json


class ProgramTest(Record):
    """Run the code as a program. Example: `{"stdin": "2 3", "stdout": "5"}`."""

    stdin: str = ""
    stdout: str


Test = CallTest | ProgramTest
_TESTS = TypeAdapter(tuple[Test, ...])


class CodeTests(AnswerVerifier):
    """Code that passes the tests of its prompt. No code, code that does not run, and wrong results are a 0.

    The code gets inputs and nothing else: what is expected, and the comparison, stay in the verifier's
    process. A sandbox that fails is an error, never a 0. Inputs that the prompt shows can be special-cased;
    use others.
    """

    class Config(AnswerVerifier.Config):
        """Settings of `code_tests`."""

        timeout_seconds: float = Field(default=60.0, gt=0, le=MAX_SECONDS)
        """Longest time for one trajectory; must leave room for `tests_seconds` and one more execution."""
        tests_key: str | None = None
        """Key of the tests in the prompt's metadata; by default they are the prompt's answer."""
        solution_key: str = "solution"
        """Key of a reference solution (source text) in the prompt's metadata, where there is one: before a run it is
        put to the prompt's tests, and the prompts whose solution fails are named."""
        code_from: Literal["last_block", "text"] = "last_block"
        """The last fenced code block of the answer, or all of its text. Of an attempt that a limit cut short: a block
        that was closed."""
        languages: tuple[str, ...] = ("", "python", "py", "python3")
        """Words after the opening fence of blocks that count."""
        score: Literal["all", "share"] = "all"
        """1 if all tests pass, else 0; or the share that passes."""
        numbers: Literal["by_type", "by_value"] = "by_value"
        """by_value: 4 and 4.0 are equal, as in Python, for data files turn whole numbers into floats where a column
        has a gap; by_type: they differ. A bool is never a number."""
        absolute_tolerance: float = Field(default=0.0, ge=0, le=MAX_SCORE)
        """Largest difference of two floats that still counts as equal; whole numbers are compared exactly."""
        relative_tolerance: float = Field(default=0.0, ge=0, le=MAX_SCORE)
        """The same, as a share of the expected number's size."""
        tests_seconds: float = Field(default=30.0, gt=0, le=MAX_SECONDS)
        """Longest time for all tests of one completion; a test that does not get its turn is not passed."""
        sandbox: SandboxSettings = SandboxSettings()
        """Limits of one execution. All calls of one function share one; each program test has its own."""

        def requires(self) -> Requirements:
            """The sandbox that it runs code in."""
            box = self.sandbox.model_dump(mode="json")
            return super().requires() + Requirements(sandbox=box)

        @model_validator(mode="after")
        def _time_enough(self) -> Self:
            needed = self.tests_seconds + self.sandbox.wall_seconds + SPARE_SECONDS
            if self.timeout_seconds < needed:
                raise ValueError(
                    explain(
                        f"slow code would be an error instead of a 0: {needed:g} s are needed",
                        value=self.timeout_seconds,
                        where="verifiers[...].timeout_seconds",
                        fix="raise it, or lower tests_seconds or sandbox.wall_seconds",
                    )
                )
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._sandbox = Sandbox(config.sandbox)

    def prepare(self) -> None:
        """Make sure that code can be contained here; raises SandboxUnavailableError where it cannot."""
        hide_memory()
        self._sandbox.prepare()

    def check_prompt(self, prompt: Prompt) -> None:
        tests = self._tests(prompt)
        if all(_demands_nothing(test) for test in tests):
            raise VerificationError(
                explain(
                    f"the tests of prompt {prompt.id!r} are vacuous: code that does nothing passes them all",
                    value=f"{[test.model_dump() for test in tests]!r:.120}",
                    where=self._where_tests_are,
                    fix="add a test that expects a value or an output",
                )
            )
        self.reference_completion(prompt)

    def reference_completion(self, prompt: Prompt) -> str | None:
        """The solution as a completion in which it is found; raises VerificationError when it is no text."""
        solution = prompt.metadata.get(self.config.solution_key)
        if solution is None:
            return None
        if not isinstance(solution, str):
            raise VerificationError(
                explain(
                    f"the reference solution of prompt {prompt.id!r} is no source text",
                    value=f"{solution!r:.120}",
                    where=f"metadata {self.config.solution_key} of the prompt (verifiers[...].solution_key)",
                    fix="give the program as one string, or null",
                )
            )
        if self.config.code_from == "text":
            return solution
        fence = "```"
        while fence in solution:
            fence += "`"
        language = next((name for name in self.config.languages if name), "")
        return f"{fence}{language}\n{solution}\n{fence}"

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return 1.0, 0.0, or the share of tests passed."""
        tests = self._tests(prompt)
        answer = self.answer(trajectory)
        code = self._code_of_cut(trajectory) if answer.missing else self._code(answer.text)
        if code is None:
            return self.scored(trajectory, 0.0, answer.missing or "no code in the answer")
        outcomes: list[str] = []
        for outcome in self._outcomes(code, tests):
            outcomes.append(outcome)
            if outcome and self.config.score == "all":
                break
        failures = [f"test {i}: {text}" for i, text in enumerate(outcomes, start=1) if text]
        passed = len(outcomes) - len(failures)
        share = passed / len(tests)
        score = share if self.config.score == "share" else float(passed == len(tests))
        text = f"{passed} of {len(tests)} tests passed" if not failures else failures[0]
        return self.scored(trajectory, score, text[:MAX_RATIONALE_CHARACTERS])

    def _outcomes(self, code: str, tests: Sequence[Test]) -> Iterator[str]:
        """Yield what is wrong, for each test in order; empty where it passes."""
        deadline = time.monotonic() + self.config.tests_seconds
        called: dict[int, str] = {}
        for index, test in enumerate(tests):
            if isinstance(test, ProgramTest):
                late = time.monotonic() > deadline
                yield "out of time (tests_seconds)" if late else self._run(code, test)
                continue
            if index not in called:
                same = {
                    i: t
                    for i, t in enumerate(tests)
                    if isinstance(t, CallTest) and t.call == test.call
                }
                called |= self._call(code, test.call, same)
            yield called[index]

    def _call(self, code: str, function: str, tests: dict[int, CallTest]) -> dict[int, str]:
        arguments = [list(test.arguments) for test in tests.values()]
        results = self._sandbox.call(code, function, arguments)
        return {
            index: self._judge_call(result, test)
            for (index, test), result in zip(tests.items(), results, strict=True)
        }

    def _judge_call(self, result: CallResult, test: CallTest) -> str:
        if result.status is not SandboxStatus.OK:
            return _failure(result.status, result.error)
        config = self.config
        equal = same_value(
            result.value,
            test.expected,
            by_value=config.numbers == "by_value",
            absolute=config.absolute_tolerance,
            relative=config.relative_tolerance,
        )
        return "" if equal else f"{test.call} returned {result.value!r:.120}"

    def _run(self, code: str, test: ProgramTest) -> str:
        result = self._sandbox.run(code, test.stdin.encode("utf-8", "replace"))
        if result.status is not SandboxStatus.OK:
            return _failure(result.status, result.error)
        return "" if _lines(result.stdout) == _lines(test.stdout) else "another output"

    def _tests(self, prompt: Prompt) -> tuple[Test, ...]:
        key = self.config.tests_key
        given = prompt.answer if key is None else prompt.metadata.get(key)
        try:
            tests = _TESTS.validate_python(given)
        except ValidationError as error:
            problem = "; ".join(
                ": ".join([*(".".join(map(str, e["loc"])),) * bool(e["loc"]), e["msg"]])
                for e in error.errors()[:3]
            )
        else:
            problem = "" if tests else "there are none"
        if problem:
            raise VerificationError(
                explain(
                    f"verifier {self.config.source!r} needs tests and cannot read those of prompt {prompt.id!r}: "
                    + problem,
                    value=f"{given!r:.120}",
                    where=self._where_tests_are,
                    fix='give a list of {"call", "arguments", "expected"} and {"stdin", "stdout"} objects',
                )
            )
        return tests

    @property
    def _where_tests_are(self) -> str:
        key = self.config.tests_key
        return "the answer column of the prompt source" if key is None else f"metadata {key}"

    def _code(self, answer: str) -> str | None:
        if self.config.code_from == "text":
            return answer if answer.strip() else None
        return last_block(answer, self.config.languages)

    def _code_of_cut(self, attempt: Trajectory) -> str | None:
        """Code of an attempt that a limit cut short: in a block that was closed, it is explicit and whole."""
        if self.config.code_from == "text":
            return None
        spoken = answer_of(attempt, unfinished=True).text
        return last_block(spoken, self.config.languages, closed=True)


def _demands_nothing(test: Test) -> bool:
    """Tell whether a function that returns nothing, or a program that prints nothing, passes."""
    if isinstance(test, CallTest):
        return test.expected is None
    return not test.stdout.strip()


def _failure(status: SandboxStatus, error: str) -> str:
    if status is SandboxStatus.START_FAILED:
        raise SandboxUnavailableError(error)
    last = error.strip().splitlines()[-1:]
    return ": ".join([status.value, *last])


def last_block(text: str, languages: Sequence[str], *, closed: bool = False) -> str | None:
    """The last fenced block in one of `languages`; one that was never closed runs to the end of the text.

    With `closed`, there is none when the last one was not closed.
    """
    found: str | None = None
    block: list[str] | None = None
    fence = language = ""
    for line in text.split("\n"):
        bare = line.strip()
        if block is None:
            size = len(bare) - len(bare.lstrip(bare[:1]))
            if bare[:1] in ("`", "~") and size >= 3 and bare[0] not in bare[size:]:
                fence, language, block = bare[:size], bare[size:].strip().lower(), []
        elif bare.startswith(fence) and not bare.strip(fence[0]):
            found = "\n".join(block) if language in languages else found
            block = None
        else:
            block.append(line)
    if block is not None and language in languages:
        found = None if closed else "\n".join(block)
    return found if found is not None and found.strip() else None


def same_value(
    found: Json, expected: Json, *, by_value: bool, absolute: float, relative: float
) -> bool:
    """Structural equality of plain JSON in which types count; floats within the tolerances.

    Both are plain values that the `json` module made: no code of the candidate runs here.
    """
    stack = [(found, expected)]
    while stack:
        one, two = stack.pop()
        if isinstance(one, bool) or isinstance(two, bool):
            if one is not two:
                return False
        elif isinstance(one, int | float) and isinstance(two, int | float):
            if type(one) is not type(two) and not by_value:
                return False
            if not _close(one, two, absolute, relative):
                return False
        elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
            stack.extend(zip(one, two, strict=True))
        elif isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
            stack.extend((one[key], two[key]) for key in one)
        elif not (one is None and two is None) and not (isinstance(one, str) and one == two):
            return False  # another text, or types or sizes that differ
    return True


def _close(one: float, two: float, absolute: float, relative: float) -> bool:
    if one == two:
        return True
    if isinstance(one, int) and isinstance(two, int):
        return False
    try:
        return abs(one - two) <= max(absolute, relative * abs(two))
    except OverflowError:  # a whole number beyond a float's range
        return False


def _lines(text: str) -> list[str]:
    """Lines without blanks at their ends and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]
