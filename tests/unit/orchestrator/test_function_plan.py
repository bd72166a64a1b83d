"""`pawl plan` shows how a user's function is called and tries it; what would fail later is refused with a remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.run_config import RunConfig
from orchestrator.plan.lines import Plan
from orchestrator.plan.preflight import make_plan
from tests.support.fake_runs import fake_tree
from tests.support.user_functions import written


def planned(folder: Path, verifier: dict[str, Any], **changes: Any) -> Plan:
    """The plan of a small run whose attempts are judged by `verifier`."""
    tree = fake_tree(folder, verifiers=[{"timeout_seconds": 20, **verifier}], **changes)
    return make_plan(RunConfig.model_validate(tree), run_folder=folder / "run")


def problems(plan: Plan) -> str:
    return "\n".join(line.found for line in plan.of("problem"))


def lines_of_functions(plan: Plan) -> list[str]:
    return [f"{x.verdict}: {x.found}" for x in plan.lines if x.what.startswith("function")]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "def f(prompt, completion, answer):\n    x = {}\n    return x['gone']",
            r"KeyError: 'gone' \(mine_\d.py, line 3, in f\)",
        ),
        (
            "def f(completions, **kw):\n    return [1 / 0 for c in completions]",
            r"ZeroDivisionError.*mine_\d.py, line 2",
        ),
        ("def f(completions, **kw): return [1.0]", r"4 made-up attempts at once.*1 items"),
        ("def f(completion): return '1.0'", r"each of 4 made-up attempts.*str '1.0'"),
        ("def f(completion): return float('nan')", "number in .*nan"),
        ("def f(completion):\n    import os; os._exit(3)", "exit code 3"),
        ("def f(completion): raise SystemExit", "SystemExit"),
        (
            "def f(completion, answer): return answer in completion",
            "TypeError",
        ),  # the answers are numbers
        (
            "from workers.verify.verifier import Verifier\n"
            "class f(Verifier):\n    def verify(self, prompt, trajectory): return 1 / 0",
            r"ZeroDivisionError.*mine_\d.py, line 3",
        ),
        (
            "def f(completions, **kw): return [float(len(kw['trainer_state'])) for c in completions]",
            "KeyError: 'trainer_state'",
        ),
    ],
)
def test_what_fails_on_every_input_is_found_before_sampling_with_its_place(
    tmp_path: Path, body: str, said: str
) -> None:
    found = problems(planned(tmp_path, {"type": written(tmp_path, body)}))
    assert re.search(said, found), found


def test_a_function_that_hangs_is_found_within_its_time(tmp_path: Path) -> None:
    reference = written(tmp_path, "import time\ndef f(completion): time.sleep(1000)")
    found = problems(planned(tmp_path, {"type": reference, "timeout_seconds": 0.5}))
    assert "more than 0.5 s" in found
    assert "timeout_seconds" in found


@pytest.mark.parametrize(
    ("body", "settings"),
    [
        ("def f(completion, answer): return 1.0 if str(answer) in completion else -1.0", {}),
        (
            "def f(completions, **kw): return [10.0 if 'answer' in c else 2.0 for c in completions]",
            {},
        ),
        ("def f(completion_ids, **kwargs): return [float(len(ids)) for ids in completion_ids]", {}),
        ("def f(solution_str, ground_truth): return {'score': -0.5, 'acc': 0}", {}),
        (
            "def f(completion, answer): return 3.0 * (str(answer) in completion)",
            {"score_range": [0, 2]},
        ),
        (
            "def f(completions, **kw): return ['4' in dict(list(c)[0])['cont' + 'ent'] for c in completions]",
            {},
        ),
        (
            "def f(completion): return len(completion['content']) > 0 if 0 else '4' in completion",
            {},
        ),
    ],
)
def test_a_remedy_that_names_a_setting_works_when_it_is_pasted(
    tmp_path: Path, body: str, settings: dict[str, Any]
) -> None:
    verifier = {"type": written(tmp_path, body), **settings}
    found = problems(planned(tmp_path, verifier))
    pasted = re.findall(r"`((?:score_range|conversational): .*?)`", found)
    assert pasted, found
    mended = verifier | yaml.safe_load(
        pasted[-1]
    )  # where there are two, the one that fits this body is the last
    assert problems(planned(tmp_path, mended)) == ""


def test_what_fails_on_some_inputs_is_a_warning_that_says_what_it_costs(tmp_path: Path) -> None:
    alone = written(tmp_path, "def f(completion): return [1.0][len(completion) < 15]")
    grouped = written(
        tmp_path, "def f(completions): return [[1.0][len(c) < 15] for c in completions]"
    )
    assert any(
        re.match("warning: fails on 1 of 4 made-up attempts: .*IndexError", line)
        for line in lines_of_functions(planned(tmp_path, {"type": alone}))
    )
    assert any(
        "on all attempts at the prompt" in line
        for line in lines_of_functions(planned(tmp_path, {"type": grouped}))
    )


def test_what_fails_at_one_prompt_alone_is_a_warning(tmp_path: Path) -> None:
    body = "def f(prompt, completion):\n    if prompt == 'What is 2 times 2?': raise ValueError\n    return 1.0"
    plan = planned(tmp_path, {"type": written(tmp_path, body)})
    assert problems(plan) == ""
    assert any(
        "made-up attempts: " in x.found and "ValueError" in x.found for x in plan.of("warning")
    )


def test_the_plan_shows_the_assignment_and_what_the_function_said(tmp_path: Path) -> None:
    reference = written(
        tmp_path, "def f(gold, response): return 0.25 + 0.5 * (str(gold) in response)"
    )
    (line,) = lines_of_functions(planned(tmp_path, {"type": reference}))
    assert line.startswith(
        "ok: gold <- answer, response <- completion; one attempt a call; as texts; tried on "
    )
    assert line.endswith(" 0.75, 0.75, 0.25, 0.25")


def test_nothing_is_tried_on_the_way_to_another_machine(tmp_path: Path) -> None:
    reference = written(tmp_path, "def f(completion): raise ValueError")
    tree = fake_tree(tmp_path, verifiers=[{"type": reference}])
    plan = make_plan(RunConfig.model_validate(tree), run_folder=tmp_path / "run", elsewhere=True)
    assert lines_of_functions(plan) == [
        "ok: completion <- completion; one attempt a call; as texts"
    ]


def prompts_file(folder: Path, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"type": "jsonl", "path": str(path)}


def test_a_function_that_compares_with_an_answer_is_refused_where_no_prompt_has_one(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"What is {i}?", "level": i} for i in range(4)]
    prompts = {
        "train": prompts_file(tmp_path, "train", rows[:3]),
        "held_out": prompts_file(tmp_path, "held_out", rows[3:]),
        "per_round": 3,
    }
    asks = written(tmp_path, "def f(completion, answer): return str(answer) in completion")
    does_without = written(tmp_path, "def f(completion, answer=None): return '4' in completion")
    assert "3 of 3 prompts have none" in problems(
        planned(tmp_path, {"type": asks}, prompts=prompts)
    )
    assert problems(planned(tmp_path, {"type": does_without}, prompts=prompts)) == ""


def test_validate_shows_the_assignment_and_calls_nothing(tmp_path: Path) -> None:
    reference = written(tmp_path, "def f(gold, response): raise ValueError")
    config = tmp_path / "c.yaml"
    config.write_text(
        yaml.safe_dump(fake_tree(tmp_path, verifiers=[{"type": reference}])), encoding="utf-8"
    )
    result = CliRunner().invoke(app, ["validate", str(config)])
    assert result.exit_code == 0, result.output
    assert "gold <- answer, response <- completion" in result.output


def test_validate_refuses_a_function_that_nothing_fills(tmp_path: Path) -> None:
    reference = written(tmp_path, "def f(completion, strictness): return 1.0")
    config = tmp_path / "c.yaml"
    config.write_text(
        yaml.safe_dump(fake_tree(tmp_path, verifiers=[{"type": reference}])), encoding="utf-8"
    )
    result = CliRunner().invoke(app, ["validate", str(config)])
    assert result.exit_code == 2
    assert "arguments: {strictness: " in re.sub(r"\s+", " ", result.output)
