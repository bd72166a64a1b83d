"""In a run: all attempts at a prompt in one call, a bad call is counted, files beside a verifier's can be imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.driver.launch import run_experiment
from orchestrator.runs.folder import RunFolder
from policies.base.component import load_object
from policies.base.records import Prompt, RoundResult, Trajectory, Verdict, VerdictStatus
from policies.storage.artifacts import read_records
from tests.support.attempts import attempt
from tests.support.fake_runs import fake_config
from tests.support.user_functions import attempts, question, written
from workers.verify.isolated_verifier import IsolatedVerifier
from workers.verify.probe import probe_attempts
from workers.verify.verifier import VERIFIERS, Verifier


def isolated(reference: str, **settings: Any) -> IsolatedVerifier:
    config = VERIFIERS.parse({"type": reference, "timeout_seconds": 30, **settings})
    assert isinstance(config, Verifier.Config)
    return IsolatedVerifier(config)


def other(prompt_id: str) -> Prompt:
    return question().model_copy(update={"id": prompt_id})


def test_each_prompt_has_one_call_and_a_failing_one_costs_its_own_attempts_alone(
    tmp_path: Path,
) -> None:
    source = (
        "def f(completions, **kw):\n"
        "    if 'bad' in completions: raise ValueError('boo')\n"
        "    return [len(completions) / 10] * len(completions)\n"
    )
    items: list[tuple[Prompt, Trajectory]] = [(other("p"), each) for each in attempts("abc")]
    items += [(other("q"), attempt(text, name=f"q{text}")) for text in ("x", "bad")]
    items += [(other("r"), attempt("y", name="r0"))]
    with isolated(written(tmp_path, source)) as verifier:
        verdicts = verifier.submit(items).result()
    assert [v.score for v in verdicts] == [0.3, 0.3, 0.3, None, None, 0.1]
    assert [v.trajectory_id for v in verdicts] == [each.id for _, each in items]
    assert all(
        "ValueError: boo (mine_0.py, line 2, in f)" in (v.error or "") for v in verdicts[3:5]
    )


def test_a_group_has_its_time_for_each_of_its_attempts(tmp_path: Path) -> None:
    source = (
        "import time\ndef f(completions):\n    time.sleep(1.0)\n    return [1.0] * len(completions)"
    )
    items = [(question(), each) for each in attempts("abcd")]
    with isolated(written(tmp_path, source), timeout_seconds=0.6) as verifier:
        assert all(v.score == 1.0 for v in verifier.submit(items).result())
        alone = verifier.verify(*items[0])
    assert alone.status is VerdictStatus.ERROR


def test_a_verifier_class_may_compare_the_attempts_at_a_prompt(tmp_path: Path) -> None:
    source = (
        "from workers.verify.verifier import Verifier\n"
        "class f(Verifier):\n"
        "    takes_groups = True\n"
        "    def verify_group(self, prompt, trajectories):\n"
        "        longest = max(len(t.completion) for t in trajectories)\n"
        "        return [self.scored(t, len(t.completion) / longest) for t in trajectories]\n"
    )
    items = [(question(), each) for each in attempts(["a", "bb"])]
    with isolated(written(tmp_path, source)) as verifier:
        assert [v.score for v in verifier.submit(items).result()] == [0.5, 1.0]


def test_a_group_that_gets_too_few_verdicts_is_an_error(tmp_path: Path) -> None:
    source = (
        "from workers.verify.verifier import Verifier\n"
        "class f(Verifier):\n"
        "    takes_groups = True\n"
        "    def verify_group(self, prompt, trajectories): return [self.scored(trajectories[0], 1.0)]\n"
    )
    with isolated(written(tmp_path, source)) as verifier:
        found = verifier.submit([(question(), each) for each in attempts(["a", "bb"])]).result()
    assert all("a Verdict for each attempt" in (v.error or "") for v in found)


# --- files beside the verifier's


def beside(folder: Path, value: float) -> str:
    """A function that imports a module beside it, at import and when it is called."""
    folder.mkdir()
    (folder / "rubric_parts.py").write_text(f"VALUE = {value}\n", encoding="utf-8")
    (folder / "more_parts.py").write_text("def same(x): return x\n", encoding="utf-8")
    source = (
        "from rubric_parts import VALUE\n"
        "def f(completion):\n    from more_parts import same\n    return same(VALUE)\n"
    )
    (folder / "grader.py").write_text(source, encoding="utf-8")
    return f"{folder / 'grader.py'}:f"


def test_a_verifier_imports_what_lies_beside_its_file_whenever_it_likes(tmp_path: Path) -> None:
    with isolated(beside(tmp_path / "a", 0.25)) as verifier:
        assert verifier.verify(question(), attempt("x")).score == 0.25
        found = verifier.probe(question(), probe_attempts(question(), 8))
    assert (found.problem, found.said) == ("", "0.25, 0.25, 0.25, 0.25")


def test_two_verifiers_may_lie_beside_modules_of_the_same_name(tmp_path: Path) -> None:
    first, second = beside(tmp_path / "a", 0.25), beside(tmp_path / "b", 0.75)
    path = list(sys.path)
    assert load_object(first).__globals__["VALUE"] == 0.25
    assert load_object(second).__globals__["VALUE"] == 0.75
    assert sys.path == path
    assert "rubric_parts" not in sys.modules
    with isolated(first) as one, isolated(second) as two:
        assert one.verify(question(), attempt("x")).score == 0.25
        assert two.verify(question(), attempt("x")).score == 0.75


def test_a_relative_path_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(tmp_path / "a", 0.5)
    monkeypatch.chdir(tmp_path)
    with isolated("./a/grader.py:f") as verifier:
        assert verifier.verify(question(), attempt("x")).score == 0.5


# --- whole runs


def run_with(root: Path, source: str) -> tuple[list[Verdict], list[RoundResult]]:
    """Verdicts and results of a run of one round of three prompts with four attempts each."""
    verifier = {"type": written(root, source), "name": "mine", "timeout_seconds": 30}
    config = fake_config(root, rounds=1, per_round=3, samples=4, verifiers=[verifier])
    folder = RunFolder(root / "run")
    summary = run_experiment(config, folder, source="")
    paths = sorted((root / "run" / "rounds" / "0001" / "verdicts").glob("*.parquet"))
    return [v for path in paths for v in read_records(path, Verdict)], list(summary.results)


def test_a_run_gives_a_rank_reward_its_meaning_and_nobody_is_called_fickle(tmp_path: Path) -> None:
    source = (
        "def f(prompts, completions, log_metric, **kw):\n"
        "    assert len(set(prompts)) == 1\n"
        "    n = len(completions)\n"
        "    log_metric('attempts', n)\n"
        "    order = sorted(range(n), key=lambda i: (len(completions[i]), i))\n"
        "    return [1 - order.index(i) / n for i in range(n)]\n"
    )
    verdicts, results = run_with(tmp_path, source)
    found = [
        sorted(v.score or 0.0 for v in verdicts[i : i + 4]) for i in range(0, len(verdicts), 4)
    ]
    assert found == [[0.25, 0.5, 0.75, 1.0]] * 3
    assert results[1].metrics["verify/mine/metrics/attempts"] == 4.0
    assert results[1].metrics["verify/mine/errors"] == 0
    assert "verify/mine/fickle_shards" not in results[1].metrics


def test_a_group_that_is_judged_by_chance_is_called_fickle(tmp_path: Path) -> None:
    source = (
        "import random\nrandom.seed(1)\n"
        "def f(completions, **kw): return [random.random() for c in completions]\n"
    )
    _, results = run_with(tmp_path, source)
    assert results[1].metrics["verify/mine/fickle_shards"] >= 1
