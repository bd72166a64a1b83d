"""What every verifier promises, found by family: a new file in the folder is tested with no edit here.

A verifier that needs settings or an answer of its own kind gets them in `SETTINGS`; one that is not listed
is tried with its defaults.
"""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import VerificationError
from policies.base.records import (
    Json,
    Message,
    Prompt,
    Trajectory,
    VerdictStatus,
)
from tests.support import attempts
from tests.support.heavy_imports import loaded_by
from workers.verify.isolated_verifier import IsolatedVerifier
from workers.verify.verifier import VERIFIERS, Verifier

NAMES = list(VERIFIERS.members())

SETTINGS: dict[str, dict[str, Any]] = {
    "callable": {"function": "tests.contracts.test_verifiers:says_answer"},
    "code_tests": {"code_from": "text"},
    "format_rules": {"must_match": [r"\d"], "max_characters": 100, "score": "share"},
    "regex_match": {"pattern": r"\d+"},
}

COMPLETIONS = {
    "empty": "",
    "blank": " \n\t ",
    "right": "The answer is 56.",
    "wrong": "55",
    "huge": "so 56 " * 200_000,
    "huge without a blank": "5" * 300_000,
    "non-ASCII": "\u7b54\u6848\u662f \uff15\uff16 \U0001f389 \u0665\u0666",
    "control": "\x00\x1b[31m\u202e56\x7f",
    "markup": "\\boxed{\\frac{1}{0}} <answer>{0.__class__}</answer> $$ %s {}",
}

HEAVY = (
    "torch",
    "vllm",
    "ray",
    "mlflow",
    "trl",
    "datasets",
    "math_verify",
    "reasoning_gym",
    "sympy",
)


def says_answer(completion: str, answer: object) -> bool:
    return str(answer) in completion


def config_of(name: str) -> dict[str, Any]:
    return {"type": name, **SETTINGS.get(name, {})}


def prompt_for(name: str) -> Prompt:
    if name == "reasoning_gym":
        from orchestrator.prompts.source import PROMPT_SOURCES

        source = {"type": "reasoning_gym", "dataset": "chain_sum", "size": 1}
        prompt: Prompt = create(PROMPT_SOURCES.parse(source)).load()[0]
        return prompt
    answer: Json = [{"call": "double", "arguments": [28], "expected": 56}]
    return Prompt(
        id="7x8",
        messages=(Message(role="user", content="What is 7 times 8?"),),
        answer=answer if name == "code_tests" else 56,
        metadata={"chosen": "The answer is 56.", "rejected": "55"},
    )


def attempt(text: str) -> Trajectory:
    """Of a game that was lost, for the verifier that reads the outcome."""
    return attempts.attempt(text, name="r1.7x8.0", prompt_id="7x8", outcome=0.0)


def test_there_are_verifiers_to_test() -> None:
    assert {"math_answer", "numeric_match", "callable"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", COMPLETIONS)
def test_any_completion_gets_the_same_score_in_range_each_time(name: str, kind: str) -> None:
    prompt, trajectory = prompt_for(name), attempt(COMPLETIONS[kind])
    verdicts = [
        create(VERIFIERS.parse(config_of(name))).verify(prompt, trajectory) for _ in range(2)
    ]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].status is not VerdictStatus.ERROR
    assert verdicts[0].score is None or 0.0 <= verdicts[0].score <= 1.0
    assert (verdicts[0].source, verdicts[0].trajectory_id) == (name, trajectory.id)
    assert len(verdicts[0].rationale) <= 400


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["empty", "blank"])
def test_an_empty_completion_is_a_zero_not_an_error(name: str, kind: str) -> None:
    verdict = create(VERIFIERS.parse(config_of(name))).verify(
        prompt_for(name), attempt(COMPLETIONS[kind])
    )
    assert verdict.score == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_process_of_its_own_changes_no_verdict(name: str) -> None:
    prompt, trajectory = prompt_for(name), attempt(COMPLETIONS["right"])
    config = VERIFIERS.parse({**config_of(name), "timeout_seconds": 60})
    assert isinstance(config, Verifier.Config)
    with IsolatedVerifier(config) as isolated:
        verdict = isolated.verify(prompt, trajectory)
    direct = create(config).verify(prompt, trajectory)
    assert verdict.model_copy(update={"seconds": 0.0}) == direct


@pytest.mark.parametrize("name", ["math_answer", "exact_match", "numeric_match"])
def test_a_missing_answer_is_an_error_that_says_so(name: str) -> None:
    prompt = Prompt(id="7x8", messages=(Message(role="user", content="?"),))
    with pytest.raises(VerificationError, match="needs an answer and prompt '7x8' has none"):
        create(VERIFIERS.parse(config_of(name))).verify(prompt, attempt("56"))


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_json_and_pickle(name: str) -> None:
    config = VERIFIERS.parse(
        {**config_of(name), "name": "mine", "weight": 2.0, "timeout_seconds": 61}
    )
    assert VERIFIERS.parse(config.model_dump(mode="json")) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert isinstance(config, Verifier.Config)
    assert (config.source, config.weight) == ("mine", 2.0)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_setting_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no_such_setting"):
        VERIFIERS.parse({**config_of(name), "no_such_setting": 1})


def test_importing_and_configuring_verifiers_loads_nothing_heavy() -> None:
    code = (
        "from workers.verify.verifier import VERIFIERS\n"
        "import workers.verify.worker\n"
        "for name in VERIFIERS.members(): VERIFIERS.resolve(name)"
    )
    assert loaded_by(code, HEAVY) == []
