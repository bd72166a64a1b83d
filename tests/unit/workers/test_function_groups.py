"""Functions in TRL's, verl's and OpenRLHF's form get what those systems give them, all attempts at a prompt at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.base.errors import VerificationError
from policies.base.records import (
    Json,
    StopReason,
    ToolCall,
    ToolCallStatus,
    Trajectory,
    Turn,
    VerdictStatus,
)
from tests.support.attempts import attempt
from tests.support.user_functions import asked, attempts, question, scores, verifier_of, written
from workers.verify.function_values import completion_messages

TEXTS = ["It is 56.", "56, for sure it is 56.", "It is 65."]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (  # rank by length in the group
            "def f(prompts, completions, **kwargs):\n"
            "    order = sorted(completions, key=len)\n"
            "    return [1 - order.index(c) / len(order) for c in completions]",
            [1.0, 1 / 3, 2 / 3],
        ),
        (  # relative to the mean of the group
            "def f(completions, **kwargs):\n"
            "    mean = sum(map(len, completions)) / len(completions)\n"
            "    return [float(len(c) < mean) for c in completions]",
            [1.0, 0.0, 1.0],
        ),
        (  # diversity
            "def f(completions, **kwargs):\n"
            "    return [sum(c[-3:] != d[-3:] for d in completions) / (len(completions) - 1) for c in completions]",
            [0.5, 0.5, 1.0],
        ),
        (  # the shortest right answer wins
            "def f(prompts, completions, answer, **kwargs):\n"
            "    right = [len(c) for c, a in zip(completions, answer) if a in c]\n"
            "    return [0.0 if a not in c else 1.0 if len(c) == min(right) else 0.5\n"
            "            for c, a in zip(completions, answer)]",
            [1.0, 0.5, 0.0],
        ),
        (
            "def f(completion_ids, **kwargs): return [len(ids) / 10 for ids in completion_ids]",
            [0.1] * 3,
        ),
        (
            "def f(completions, solution=None, **kwargs): return [s in c for s, c in zip(solution, completions)]",
            [1, 1, 0],
        ),
        (
            "def f(completions, **kwargs): return [a in c for a, c in zip(kwargs['ground_truth'], completions)]",
            [1, 1, 0],
        ),
        (
            "def f(completions, **kwargs): return [a in c for a, c in zip(kwargs['label'], completions)]",
            [1, 1, 0],
        ),
        ("def f(completions, level, **kwargs): return [n / 2 for n in level]", [1.0] * 3),
        ("async def f(completions, **kwargs): return ['56' in c for c in completions]", [1, 1, 0]),
        ("def f(completions): return (float('56' in c) for c in completions)", [1, 1, 0]),
        (
            "import torch\ndef f(completions): return torch.tensor([float('56' in c) for c in completions])",
            [1, 1, 0],
        ),
        (
            "import numpy\ndef f(completions): return numpy.array(['56' in c for c in completions])",
            [1, 1, 0],
        ),
        (
            "def f(completions, **kw): return [None if '65' in c else 1.0 for c in completions]",
            [1, 1, None],
        ),
        (
            "class Reward:\n"
            "    __name__ = 'mine'\n"
            "    def __call__(self, completions, **kwargs): return [float('56' in c) for c in completions]\n"
            "f = Reward()",
            [1, 1, 0],
        ),
        (
            "def f(data_sources, solution_strs, ground_truths, extra_infos=None, **kwargs):\n"
            "    rows = zip(solution_strs, ground_truths, extra_infos)\n"
            "    return [float(g in s and e['level'] == 2) for s, g, e in rows]",
            [1, 1, 0],
        ),
        (
            "def f(data_sources, solution_strs, ground_truths, extra_infos):\n"
            "    return [{'score': float(g in s), 'acc': 1} for s, g in zip(solution_strs, ground_truths)]",
            [1, 1, 0],
        ),
        (
            "import torch\n"
            "def f(queries, prompts, labels, **kwargs):\n"
            "    right = [float(l in q[len(p):]) for q, p, l in zip(queries, prompts, labels)]\n"
            "    return {'rewards': torch.tensor(right), 'scores': torch.zeros(3), 'extra_logs': {'x': torch.ones(3)}}",
            [1, 1, 0],
        ),
        (
            "def f(predictions, references): return [r in p for p, r in zip(predictions, references)]",
            [1, 1, 0],
        ),
    ],
)
def test_a_function_of_a_plural_form_sees_all_attempts_at_a_prompt(
    tmp_path: Path, source: str, expected: list[float | None]
) -> None:
    found = scores(written(tmp_path, source), question("56", level=2), TEXTS)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("return [1.0]", "one number .* per completion, here 3.*1 items"),
        ("return 1.0", "list with one number"),
        ("return {'acc': [1, 1, 1]}", "key 'rewards'"),
        ("return 'yes'", "list with one number"),
    ],
)
def test_a_list_of_another_length_is_refused(tmp_path: Path, body: str, wanted: str) -> None:
    reference = written(tmp_path, f"def f(completions, **kwargs): {body}")
    with pytest.raises(VerificationError, match=wanted):
        asked(reference, question(), TEXTS)


def test_one_bad_item_is_an_error_of_its_own_attempt_alone(tmp_path: Path) -> None:
    source = "def f(completions): return [1.0, float('nan'), 7.0]"
    verdicts = asked(written(tmp_path, source), question(), TEXTS)
    assert [v.status for v in verdicts] == [VerdictStatus.SCORED] + [VerdictStatus.ERROR] * 2
    assert "[0, 1]" in (verdicts[2].error or "")


def test_an_empty_attempt_takes_part_and_is_a_zero(tmp_path: Path) -> None:
    source = (
        "def f(completions): return [1.0 if len(completions) == 2 else 0.5 for c in completions]"
    )
    assert scores(written(tmp_path, source), question(), ["56", " "]) == [1.0, 0.0]


def test_a_column_of_the_data_comes_before_the_usual_names_of_the_answer(tmp_path: Path) -> None:
    source = (
        "def f(completions, solution, answer):\n"
        "    return [s == 'worked out' and a == '56' for s, a in zip(solution, answer)]"
    )
    assert scores(written(tmp_path, source), question("56", solution="worked out"), ["x"]) == [1.0]


def test_what_is_logged_becomes_metrics_and_a_note(tmp_path: Path) -> None:
    source = (
        "def f(completions, log_extra=None, log_metric=None, **kwargs):\n"
        "    log_extra('length', [len(c) for c in completions])\n"
        "    log_metric('shortest', min(map(len, completions)))\n"
        "    log_metric('shortest', 1.0)\n"
        "    return [1.0] * len(completions)"
    )
    first, second, _ = asked(written(tmp_path, source), question(), ["five5", "six666", "x" * 9])
    assert (first.metrics, second.metrics) == ({"shortest": 3.0}, {})
    assert (first.rationale, second.rationale) == ("length: 5", "length: 6")


# --- chat messages


def with_tool(text: str = "It is 56.") -> Trajectory:
    """An attempt that called Python and then answered."""
    call = Turn(
        role="policy",
        token_ids=(3, 4),
        text="```python\nprint(7 * 8)\n```",
        logprobs=(-1.0, -1.0),
        stop_reason=StopReason.STOP,
    )
    output = Turn(
        role="observation",
        token_ids=(5,),
        text="56",
        stop_reason=StopReason.OBSERVATION,
        calls=(ToolCall(tool="python", status=ToolCallStatus.OK),),
    )
    last = attempt(text).turns
    return attempt(text, turns=(call, output, *last))


def test_a_conversation_has_all_its_turns_with_calls_and_tool_messages() -> None:
    first, tool, last = completion_messages(with_tool())
    assert (first["role"], tool["role"], last["role"]) == ("assistant", "tool", "assistant")
    assert first["tool_calls"][0]["function"]["name"] == tool["name"] == "python"
    assert (tool["content"], last["content"]) == ("56", "It is 56.")


def test_what_an_environment_or_a_critic_says_is_no_tool_message() -> None:
    said = Turn(
        role="observation", token_ids=(5,), text="Too high.", stop_reason=StopReason.OBSERVATION
    )
    guess = attempt("9").turns
    turns = completion_messages(attempt("7", turns=(*guess, said, *attempt("7").turns)))
    assert [turn["role"] for turn in turns] == ["assistant", "user", "assistant"]
    assert "tool_calls" not in turns[0]


@pytest.mark.parametrize(
    "source",
    [
        "def f(completions, **kw): return [float('56' in c[0]['content']) for c in completions]",
        "def f(completions, **kw): return [float('56' in c[-1].get('content', '')) for c in completions]",
        "def last(c): return c[-1]['content']\ndef f(completions, **kw): return ['56' in last(c) for c in completions]",
        "def f(completions: list[list[dict[str, str]]]): return ['56' in str(c[0].values()) for c in completions]",
        "def f(prompts, completions, **kw):\n"
        "    assert prompts[0][-1] == {'role': 'user', 'content': '7 times 8?'}\n"
        "    return [float('56' in c[0]['content']) for c in completions]",
        "def f(completions, **kw):\n"
        "    texts = [c[0]['content'] if isinstance(c, list) else c for c in completions]\n"
        "    return ['56' in t for t in texts]",
        "def f(completion, answer, state): return answer in completion[-1]['content']",
    ],
)
def test_a_function_that_reads_messages_gets_messages_without_a_setting(
    tmp_path: Path, source: str
) -> None:
    assert scores(written(tmp_path, source), question(), TEXTS) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "source",
    [
        "def f(completions, **kw): return ['56' in c for c in completions]",
        "def f(completions: list[str], **kw): return ['56' in c for c in completions]",
        "import json\ndef f(completions, **kw):\n"
        "    return ['56' in json.loads(json.dumps({'content': c}))['content'] for c in completions]",
    ],
)
def test_a_function_that_reads_texts_gets_texts(tmp_path: Path, source: str) -> None:
    assert scores(written(tmp_path, source), question(), TEXTS) == [1.0, 1.0, 0.0]


def test_tool_turns_reach_a_function_that_looks_for_them(tmp_path: Path) -> None:
    source = "def f(completions, **kw): return [float(any(m.get('role') == 'tool' for m in c)) for c in completions]"
    verifier = verifier_of(written(tmp_path, source))
    found = verifier.verify_group(question(), [with_tool(), *attempts(["It is 56."])])
    assert [verdict.score for verdict in found] == [1.0, 0.0]


# --- TRL's own


@pytest.mark.parametrize(
    ("name", "settings", "answer", "texts", "expected"),
    [
        ("accuracy_reward", {}, r"\frac{1}{2}", [r"\boxed{\frac{2}{4}}", r"\boxed{3}"], [1.0, 0.0]),
        ("accuracy_reward", {}, "what?", [r"\boxed{1}"], [None]),
        (
            "reasoning_accuracy_reward",
            {},
            "$3$",
            [r"<think>a</think> \boxed{3}", r"\boxed{3}"],
            [1.0, 0.0],
        ),
        ("think_format_reward", {}, None, ["<think>\nso\n</think>\n56", "56"], [1.0, 0.0]),
        (
            "get_soft_overlong_punishment",
            {
                "factory_arguments": {"max_completion_len": 1, "soft_punish_cache": 0},
                "score_range": [-1, 0],
            },
            None,
            ["56"],
            [1.0],
        ),
        (
            "get_repetition_penalty_reward",
            {"factory_arguments": {}, "score_range": [-1, 0]},
            None,
            ["56"],
            [1.0],
        ),
        (
            "get_cosine_scaled_reward",
            {"factory_arguments": {"max_len": 100}, "score_range": [-1, 1]},
            "$3$",
            [r"\boxed{3}", r"\boxed{4}"],
            [1.0, 0.0],
        ),
    ],
)
def test_the_rewards_that_trl_ships_work_by_their_name(
    name: str,
    settings: dict[str, Any],
    answer: Json,
    texts: list[str],
    expected: list[float | None],
) -> None:
    found = scores(f"trl.rewards:{name}", question(answer), texts, **settings)
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["get_soft_overlong_punishment", "get_repetition_penalty_reward"])
def test_a_function_that_makes_the_reward_is_refused_with_the_setting_that_calls_it(
    name: str,
) -> None:
    with pytest.raises(VerificationError, match=r"factory_arguments: \{"):
        verifier_of(f"trl.rewards:{name}").check_prompt(question())


# --- verl's


@pytest.mark.parametrize(
    "source",
    [
        "def f(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    assert data_source == 'times'\n"
        "    return float(ground_truth in solution_str and extra_info['index'] == 3 and extra_info['num_turns'] == 2)",
        "def f(data_source, solution_str, ground_truth, extra_info, **kwargs):\n"
        "    assert not kwargs\n    return {'score': float(ground_truth in solution_str), 'acc': 1, 'pred': 'x'}",
        "def f(solution_str, ground_truth): return ground_truth in solution_str, True, '56'",
        "def f(model_output: str, ground_truth: str) -> float: return float(ground_truth in model_output)",
        "def f(predict_str, ground_truth, boxed=True): return float(ground_truth in predict_str and boxed is True)",
        "async def f(data_source, solution_str, ground_truth, extra_info): return float(ground_truth in solution_str)",
        "def f(solution_str, ground_truth, method='strict', format_score=0.0, score=1.0):\n"
        "    return score if ground_truth in solution_str and method == 'strict' else format_score",
    ],
)
def test_verl_functions_are_called_as_verl_calls_them(tmp_path: Path, source: str) -> None:
    prompt = question(
        "56",
        data_source="times",
        extra_info={"index": 3, "split": "train"},
        ability="math",
        score=9,
        method="flexible",
    )
    assert scores(written(tmp_path, source), prompt, TEXTS) == [1.0, 1.0, 0.0]


def test_a_ground_truth_may_be_a_struct(tmp_path: Path) -> None:
    source = "def f(solution_str, ground_truth, **kw): return any(t in solution_str for t in ground_truth['target'])"
    assert scores(written(tmp_path, source), question({"target": ["56", "fifty-six"]}), TEXTS) == [
        1.0,
        1.0,
        0.0,
    ]


def test_numbers_beside_the_score_become_metrics_and_texts_a_note(tmp_path: Path) -> None:
    source = "def f(solution_str, ground_truth): return {'score': 0.5, 'acc': True, 'length': 7, 'pred': '56'}"
    (verdict,) = asked(written(tmp_path, source), question(), ["x"])
    assert (verdict.score, verdict.rationale) == (0.5, "pred: 56")
    assert verdict.metrics == {"acc": 1.0, "length": 7.0}
