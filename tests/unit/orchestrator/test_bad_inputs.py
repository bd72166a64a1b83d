"""Bad input is refused before anything starts: one table, through the command that users type.

Rows that are about what happens while a run goes on are recorded outcomes and proved where they happen:
53 to 55 (what a verifier returns, raises, prints, never finishes) in `test_verifiers.py` and `test_isolation.py`,
whether it says the same twice in `test_fickle_verifiers.py`;
47 (a pattern that never ends) in `test_isolation.py`; 48 and 49 also in `test_verifiers.py` and `test_code_tests.py`;
59 (answers of judges) in `test_judge_parse.py`; 60 (nothing contains code) in `tests/integration/test_sandbox.py`;
63 (metric names and values) in `test_tracking_names.py`; 26 (weights that are not finite) where weights are read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from tests.support import bad_config_rows, bad_file_rows
from tests.support.bad_rows import CONFIG, FAKE_MODEL, HELD_OUT, TRAIN, Row

ROWS = (*bad_config_rows.ROWS, *bad_file_rows.ROWS)
HEAVY = frozenset({"ray", "torch", "vllm", "mlflow", "trl", "transformers", "datasets"})


def tree(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder; Python's own cache beside a user's file is not ours."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else p.lstat().st_mode.__str__()
        for p in sorted(folder.rglob("*"))
        if "__pycache__" not in p.parts
    }


def invoke(arguments: list[str]) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments)
    said = done.stderr or done.stdout
    if arguments[0] == "plan" and done.stdout.startswith("{"):
        lines = json.loads(done.stdout)["lines"]
        said = "\n".join(f"{x['what']}: {x['found']}" for x in lines if x["verdict"] == "problem")
    return done.exit_code, said


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.delenv("PAWL_NOT_SET", raising=False)
    monkeypatch.delenv("PAWL_DEBUG", raising=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_table_has_at_least_60_rows_of_at_least_50_numbers() -> None:
    titles = [row.title for row in ROWS]
    assert len(set(titles)) == len(titles) >= 60
    assert len({row.number for row in ROWS}) >= 50


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_bad_input_is_refused_in_four_parts_and_nothing_is_written(row: Row, here: Path) -> None:
    row.spoil(here)
    before, loaded = tree(here), HEAVY & set(sys.modules)
    for line in row.command_lines():
        code, said = invoke(line)
        assert code == row.code, f"{line}: {said}"
        for part in row.says:
            assert part in said, f"{line} does not say {part!r}:\n{said}"
        assert "Fix: " in said
        assert "Traceback" not in said
        assert "internal error" not in said
        assert tree(here) == before
        assert HEAVY & set(sys.modules) == loaded


def test_the_good_input_that_the_rows_spoil_is_accepted(here: Path) -> None:
    Row(0, "good", ("", "", "", "")).spoil(here)
    before = tree(here)
    assert invoke(["validate", "c.yaml"])[0] == 0
    assert invoke(["plan", "c.yaml", "--json"]) == (0, "")
    assert tree(here) == before
    assert invoke(["run", "c.yaml", "--name", "good"])[0] == 0


def test_all_problems_of_all_files_are_said_at_once(here: Path) -> None:
    bad = CONFIG + "rolout: 1\nseed: -1\n"
    bad = bad.replace("max_tokens: 16", "max_tokens: 0, top_p: 3").replace("rounds: 1", "rounds: x")
    Row(0, "many", ("", "", "", ""), config=bad).spoil(here)
    for command in ("validate", "plan", "run"):
        code, said = invoke([command, "c.yaml"])
        assert code == 2
        problems = [line for line in said.splitlines() if "Fix: " in line]
        assert len(problems) == 5, said
    Row(
        0, "many", ("", "", "", ""), files={"train.jsonl": "{}\n[]\n", "held_out.jsonl": "x"}
    ).spoil(here)
    for command in ("validate", "plan", "run"):
        _, said = invoke([command, "c.yaml", *(["--json"] if command == "plan" else [])])
        for part in (
            "train.jsonl:1: no 'prompt'",
            "train.jsonl:2: expected an object",
            "held_out.jsonl:1: not JSON",
        ):
            assert part in said


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_every_line_end_and_a_last_line_without_one_is_accepted(here: Path, end: str) -> None:
    text = TRAIN.decode().replace("\n", end)
    files = {"train.jsonl": text, "held_out.jsonl": HELD_OUT.decode().strip()}
    Row(39, "line-ends", ("", "", "", ""), files=files).spoil(here)
    assert invoke(["validate", "c.yaml"])[0] == 0


def test_a_few_prompts_that_cannot_be_judged_are_a_warning_with_their_ids(here: Path) -> None:
    train = TRAIN + b'{"prompt": "no answer"}\n{"prompt": "one more", "answer": 1}\n'
    Row(46, "some", ("", "", "", ""), files={"train.jsonl": train}).spoil(here)
    done = CliRunner().invoke(app, ["validate", "c.yaml"])
    assert done.exit_code == 0
    assert "1 of 4 prompts cannot be judged by numeric_match" in done.stderr
    assert "has none" in done.stderr


def test_a_few_prompts_that_are_too_long_are_a_warning_with_their_number(here: Path) -> None:
    train = TRAIN + b'{"prompt": "' + b"x " * 4000 + b'", "answer": 1}\n'
    Row(45, "some", ("", "", "", ""), files={"train.jsonl": train}).spoil(here)
    done = CliRunner().invoke(app, ["plan", "c.yaml", "--json"])
    warned = [x["found"] for x in json.loads(done.stdout)["lines"] if x["verdict"] == "warning"]
    assert done.exit_code == 0
    assert any(
        "about 1 of 3 prompts are longer than training.max_length (got 2048" in x for x in warned
    )


@pytest.mark.parametrize(
    ("backend", "warned"),
    [
        ("{type: engine, engine: fake}", True),
        (f"{{type: engine, engine: fake, model: {FAKE_MODEL}}}", True),
        ("{type: engine, engine: fake, model: org/another}", False),
        ("{type: fake}", False),
    ],
)
def test_a_judge_that_is_the_policy_is_warned_of_before_the_run(
    here: Path, backend: str, warned: bool
) -> None:
    more = f"judges: [{{type: rubric, backend: {backend}}}]\n"
    Row(58, "own-judge", ("", "", "", ""), more=more).spoil(here)
    done = CliRunner().invoke(app, ["validate", "c.yaml"])
    assert done.exit_code == 0
    said = "judge 'rubric' is the policy's own model: models tend to prefer text like their own"
    assert (said in done.stderr) is warned


def test_a_few_solutions_that_fail_their_tests_are_a_warning_with_their_ids(here: Path) -> None:
    right, wrong = "def add(a, b):\n    return a + b", "def add(a, b):\n    return 4.0"
    tests = [{"call": "add", "arguments": [1, 2], "expected": 3}]
    rows = [
        {"prompt": f"q{i}", "answer": tests, "n": f"p{i}", "solution": solution}
        for i, solution in enumerate([right, wrong, right + "\n# ``` and ````", None])
    ]
    overrides = ["verifiers=[code_tests]", "evaluation.verifiers=[numeric_match]"]
    overrides += ["prompts.train.columns={metadata: [solution], id: n}"]
    Row(
        51, "some", ("", "", "", ""), files={"train.jsonl": "\n".join(map(json.dumps, rows))}
    ).spoil(here)

    def said(*more: str) -> list[str]:
        done = CliRunner().invoke(app, ["plan", "c.yaml", "--json", *overrides, *more])
        lines = json.loads(done.stdout)["lines"]
        return [
            f"{x['verdict']}: {x['found']}" for x in lines if "reference solutions" in x["found"]
        ]

    (line,) = said()
    assert line.startswith(
        "warning: 1 of 3 reference solutions are not scored 1 by code_tests (got p1)"
    )
    assert "p1: test 1: add returned 4.0" in line
    assert said("limits.solution_seconds=0") == [
        "ok: 3 reference solutions, not judged: limits.solution_seconds is 0"
    ]
    short = said("limits.solution_seconds=0.001")
    assert short[0] == "ok: 1 reference solutions are scored 1 by code_tests"
    assert short[1].startswith(
        "warning: 2 of 3 reference solutions were not judged by code_tests within"
    )
    assert said("--elsewhere") == ["ok: 3 reference solutions, not judged: another machine"]


def test_a_finished_run_has_nothing_to_resume(here: Path) -> None:
    Row(64, "finished", ("", "", "", "")).spoil(here)
    assert invoke(["run", "c.yaml", "--name", "done"])[0] == 0
    before = tree(here)
    done = CliRunner().invoke(app, ["resume", "runs/done"])
    assert done.exit_code == 0
    assert "nothing to resume" in done.stdout
    assert tree(here) == before
