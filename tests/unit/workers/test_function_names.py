"""A user's function gets what the names of its parameters say, or is refused before anything is sampled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.base.errors import ConfigurationError, VerificationError
from policies.base.records import Json
from tests.support.user_functions import question, scores, verifier_of, written
from workers.verify.parameter_names import MANY, MEANINGS, ONE

RIGHT_AND_WRONG = ["It is 56.", "It is 65."]


@pytest.mark.parametrize(
    "source",
    [
        "def f(completion, answer, state): return answer in completion and state['answer'] == answer",
        "def f(answer, completion): return answer in completion",
        "def f(gold, response): return gold in response",
        "def f(model_answer, gold, question): return gold in model_answer and question == '7 times 8?'",
        "def f(reference, prediction): return reference in prediction",
        "def f(expected, actual): return expected in actual",
        "def f(text, *, target): return target in text",
        "def f(label, output, /): return label in output",
        "def f(completion, answer, info): return answer in completion and info['level'] == 2",
        "def f(completion, answer, level): return answer in completion and level == 2",
        "def f(completion, answer, task): return answer in completion and task == 'default'",
        "def f(completion, answer=None, level=9): return answer in completion and level == 2",
        "def f(completion, answers): return answers in completion",
        "def f(response, target=0.5): return '56' in response and target == 0.5",
        "def f(completion, **kw): return kw['ground_truth'] in completion and kw['level'] == 2",
        "def f(a, b, c): return c in b and a == '7 times 8?'",
        "def f(x): return '56' in x",
        "import functools\ndef g(tolerance, completion, answer): return answer in completion and tolerance == 3\n"
        "f = functools.partial(g, 3)",
        "import functools\ndef g(completion, answer, solution): return answer in completion and solution == 'x'\n"
        "f = functools.partial(g, solution='x')",
        "class Scorer:\n    def __call__(self, completion, answer): return answer in completion\nf = Scorer()",
        "import functools\ndef wrapped(g):\n    @functools.wraps(g)\n    def inner(*args, **kwargs): return g(*args, "
        "**kwargs)\n    return inner\n@wrapped\ndef f(answer, completion): return answer in completion",
        "import numpy\ndef f(completion, answer): return numpy.float32(answer in completion)",
        "import torch\ndef f(completion, answer): return torch.tensor([float(answer in completion)])",
        "def f(completion, answer): return int(answer in completion)",
        "async def f(completion, answer): return answer in completion",
        "def f(completion, answer): return {'score': float(answer in completion), 'acc': True}",
        "def f(completion, answer): return {'reward': float(answer in completion)}",
    ],
)
def test_parameters_are_filled_by_name_in_any_order(tmp_path: Path, source: str) -> None:
    reference = written(tmp_path, source)
    assert scores(reference, question("56", level=2), RIGHT_AND_WRONG) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "def f(solution, answer, prompt): return 1.0",
            "no parameter of the function gets the attempt",
        ),
        (
            "def f(answer, ground_truth): return 1.0",
            "no parameter of the function gets the attempt",
        ),
        ("def f(completion, answer, parser): return 1.0", "no parser object"),
        ("def f(completion, difficulty): return 1.0", r"got \['difficulty'\].*level"),
        ("def f(prompts, completion, answer): return 1.0", "cannot be filled in"),
        ("def f(completion, strictness, answer): return 1.0", r"got \['strictness'\]"),
        ("def f(): return 1.0", "no parameter of the function gets the attempt"),
        ("def f(a, b): return 1.0", "cannot be filled in"),
        ("def f(completions, trainer_state): return [1.0]", "no trainer state"),
    ],
)
def test_what_nothing_fills_is_refused_for_every_prompt_before_a_run(
    tmp_path: Path, source: str, said: str
) -> None:
    verifier = verifier_of(written(tmp_path, source))
    with pytest.raises(VerificationError, match=said):
        verifier.check_prompt(question("56", level=2))


@pytest.mark.parametrize(
    "source",
    [
        "def f(solution, answer, prompt): return answer in solution",
        "def f(answer, ground_truth): return ground_truth in answer",
        "def f(a, b): return b in a",
        "def f(completion, strictness, answer): return answer in completion and strictness == 2",
        "def f(gold, written, level): return gold in written and level == 2",
    ],
)
def test_the_arguments_that_a_refusal_names_fill_the_function_when_they_are_pasted(
    tmp_path: Path, source: str
) -> None:
    reference, prompt = written(tmp_path, source), question("56", level=2)
    with pytest.raises(VerificationError) as refused:
        verifier_of(reference).check_prompt(prompt)
    pasted = re.search(r"`(arguments: \{.*?\})`", str(refused.value))
    assert pasted is not None, str(refused.value)
    settings: dict[str, Any] = yaml.safe_load(pasted[1])
    assert scores(reference, prompt, RIGHT_AND_WRONG, **settings) == [1.0, 0.0]


def test_the_wrapper_that_a_refusal_names_works_when_it_is_pasted(tmp_path: Path) -> None:
    source = (
        "def f(prompts, completions, trainer_state, answer, **columns):\n"
        "    return [float(a in c) for a, c in zip(answer, completions)]\n"
    )
    with pytest.raises(VerificationError) as refused:
        verifier_of(written(tmp_path, source)).check_prompt(question())
    pasted = re.search(r"`(def score.*?)`", str(refused.value))
    assert pasted is not None
    reference = written(tmp_path, source + pasted[1], "score")
    assert scores(reference, question(), RIGHT_AND_WRONG) == [1.0, 0.0]


def test_arguments_name_columns_paths_into_them_and_what_an_attempt_is(tmp_path: Path) -> None:
    source = "def f(x, y, z): return y in x and z == 3"
    settings = {"arguments": {"x": "completion", "y": "answer", "z": "extra_info.index"}}
    prompt = question("56", extra_info={"index": 3})
    assert scores(written(tmp_path, source), prompt, RIGHT_AND_WRONG, **settings) == [1.0, 0.0]


def test_arguments_that_name_nothing_are_refused_with_what_there_is(tmp_path: Path) -> None:
    reference = written(tmp_path, "def f(completion, y): return 1.0")
    with pytest.raises(VerificationError, match=r"no column 'depth'.*level"):
        verifier_of(reference, arguments={"y": "depth"}).check_prompt(question(level=2))
    with pytest.raises(ConfigurationError, match=r"no parameter z.*completion, y"):
        verifier_of(reference, arguments={"z": "level"}).check_prompt(question(level=2))


@pytest.mark.parametrize(
    ("source", "metadata", "said"),
    [
        (
            "def f(a, b, c): return 1",
            {},
            "a <- prompt, b <- completion, c <- answer; one attempt a call; by POSITION",
        ),
        (
            "def f(gold, response): return 1",
            {},
            "gold <- answer, response <- completion; one attempt a call",
        ),
        (
            "def f(completion, level, strict=True): return 1",
            {"level": 2},
            "level <- column level, strict <- its default",
        ),
        (
            "def f(completions, **kw): return 1",
            {"level": 2},
            r"\*\*kwargs <- level, answer, .*one call for all attempts",
        ),
    ],
)
def test_the_assignment_can_be_read(
    tmp_path: Path, source: str, metadata: dict[str, Json], said: str
) -> None:
    described = verifier_of(written(tmp_path, source)).described(question(**metadata))
    assert re.search(said, described), described
    assert ("POSITION" in described) == ("POSITION" in said)


def test_a_column_is_not_taken_for_the_attempt_nor_the_attempt_for_a_column(tmp_path: Path) -> None:
    prompt = question("56", response="a reference", text="a column")
    alone = written(tmp_path, "def f(response, answer): return answer in response")
    beside = written(
        tmp_path,
        "def f(completion, text, answer): return answer in completion and text == 'a column'",
    )
    assert scores(alone, prompt, RIGHT_AND_WRONG) == [1.0, 0.0]
    assert scores(beside, prompt, RIGHT_AND_WRONG) == [1.0, 0.0]


def test_what_a_function_changes_does_not_reach_the_next_attempt(tmp_path: Path) -> None:
    source = (
        "def f(completion, metadata, answer):\n"
        "    metadata['level'].append(1)\n    return len(metadata['level']) == 1"
    )
    assert scores(written(tmp_path, source), question(level=[]), ["a", "b"]) == [1.0, 1.0]


def test_args_and_kwargs_alone_are_refused_until_the_signature_is_said(tmp_path: Path) -> None:
    reference = written(tmp_path, "def f(*args, **kwargs): return '56' in kwargs['solution_str']")
    with pytest.raises(ConfigurationError, match="signature: trl"):
        verifier_of(reference).check_prompt(question())
    assert scores(reference, question(), RIGHT_AND_WRONG, signature="verl") == [1.0, 0.0]


def test_every_name_of_the_table_stands_for_something_that_can_be_given() -> None:
    assert set(ONE.values()) | set(MANY.values()) == set(MEANINGS)


def test_settings_that_say_nothing_new_are_written_as_older_runs_wrote_them(tmp_path: Path) -> None:
    settings = verifier_of(written(tmp_path, "def f(completion): return 1.0")).config
    assert not {"arguments", "factory_arguments"} & set(settings.model_dump(mode="json"))
    said = verifier_of(
        written(tmp_path, "def f(x): return 1.0"), arguments={"x": "completion"}
    ).config
    assert said.model_dump(mode="json")["arguments"] == {"x": "completion"}


def test_columns_reach_a_function_with_metadata_of_verl_and_names_of_ours(tmp_path: Path) -> None:
    source = (
        "def f(completion, extra_info, level=1): return level == 2 and extra_info['level'] == 2"
    )
    assert scores(written(tmp_path, source), question(level=2), ["x"]) == [1.0]
