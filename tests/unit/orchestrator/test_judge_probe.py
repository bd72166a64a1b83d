"""A judge server that cannot be asked is found before sampling, and every remedy that is named works when pasted."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.inspect.doctor.machine import examine_machine
from orchestrator.plan.judges import plan_judges
from orchestrator.plan.lines import Plan
from orchestrator.runs.folder import RunFolder
from policies.base.errors import JudgeError
from tests.support.fake_runs import fake_config
from tests.support.judge_server import COMPLETION_TOKENS, PROMPT_TOKENS, judge_server

KEY = "sk-CANARY-of-a-judge"
VARIABLE = "PAWL_TEST_JUDGE_KEY"


def judged(root: Path, url: str, **changes: Any) -> RunConfig:
    """A run of one round with a rubric judge behind `url`."""
    backend = {"type": "openai", "base_url": url, "model": "judge-small", "max_retries": 0}
    judge = {"type": "rubric", "name": "prose", "backend": backend | changes}
    return fake_config(root, judges=[judge], rounds=1)


def planned(config: RunConfig, *, elsewhere: bool = False) -> Plan:
    plan = Plan()
    plan_judges(config, plan, elsewhere=elsewhere)
    return plan


def problem(config: RunConfig) -> str:
    plan = planned(config)
    assert [line.verdict for line in plan.lines] == ["problem"]
    return plan.lines[0].found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_server_that_answers_is_named(tmp_path: Path) -> None:
    with judge_server() as server:
        plan = planned(judged(tmp_path, server.url))
        assert [(line.verdict, line.found) for line in plan.lines] == [
            ("ok", f"prose asks {server.url}, which answers")
        ]
        assert server.asked_in_earnest == 0
        assert len(server.questions) == 1


def test_a_server_that_is_not_there_is_a_problem_of_base_url(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    found = problem(judged(tmp_path, url))
    assert "prose: the judge server cannot be reached" in found
    assert f"(got '{url}')" in found
    assert "backend.base_url" in found
    assert "Fix: start it" in found


def test_a_wrong_model_name_is_found_and_the_named_one_works(tmp_path: Path) -> None:
    with judge_server() as server:
        found = problem(judged(tmp_path, server.url, model="judge-smal"))
        assert "no such model" in found
        assert "backend.model" in found
        remedy = re.search(r"Fix: set model to (\S+)", found)
        assert remedy is not None
        assert planned(judged(tmp_path, server.url, model=remedy[1])).fits


@pytest.mark.parametrize("written", ["", "/v1/chat/completions", "/v2", "/v1/models"])
def test_a_wrong_path_is_found_and_the_named_one_works(tmp_path: Path, written: str) -> None:
    with judge_server() as server:
        host = server.url.removesuffix("/v1")
        found = problem(judged(tmp_path, f"{host}{written}"))
        remedy = re.search(r"Fix: base_url: (\S+)", found)
        assert remedy is not None, found
        assert planned(judged(tmp_path, remedy[1])).fits


def test_a_missing_and_a_wrong_key_are_found_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with judge_server(key=KEY) as server:
        assert "api_key_env" in problem(judged(tmp_path, server.url))
        config = judged(tmp_path, server.url, api_key_env=VARIABLE)
        monkeypatch.delenv(VARIABLE, raising=False)
        assert f"{VARIABLE} is not set" in problem(config)
        monkeypatch.setenv(VARIABLE, "sk-CANARY-that-is-wrong")
        found = problem(config)
        assert f"export {VARIABLE}" in found
        assert "CANARY" not in found
        monkeypatch.setenv(VARIABLE, KEY)
        assert planned(config).fits


def test_a_busy_server_is_a_warning_and_a_refused_field_a_problem(tmp_path: Path) -> None:
    with judge_server(status=503) as server:
        assert [line.verdict for line in planned(judged(tmp_path, server.url)).lines] == ["warning"]
    with judge_server(status=400) as server:
        assert "extra_body" in problem(judged(tmp_path, server.url))


def test_what_answers_but_is_no_chat_endpoint_is_found(tmp_path: Path) -> None:
    with judge_server() as server:
        server.page = b"<html>"
        assert "no chat endpoint" in problem(judged(tmp_path, server.url))


def test_from_another_machine_nothing_is_asked(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    plan = planned(judged(tmp_path, url), elsewhere=True)
    assert plan.fits
    assert "not tried" in plan.lines[0].found


def test_judges_of_one_server_are_asked_once(tmp_path: Path) -> None:
    with judge_server() as server:
        backend = {"type": "openai", "base_url": server.url, "model": "judge-large"}
        judges = [
            {"type": "rubric", "backend": backend},
            {"type": "pairwise", "backend": backend},
        ]
        plan = planned(fake_config(tmp_path, judges=judges))
        assert [line.found.partition(" asks")[0] for line in plan.lines] == ["rubric, pairwise"]
        assert len(server.questions) == 1


def test_the_doctor_names_a_judge_server_that_is_away(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    judge = f"judges=[{{type: rubric, backend: {{type: openai, base_url: '{url}', model: m}}}}]"
    findings = examine_machine("fake-smoke", [judge]).findings
    (found,) = [f for f in findings if f.what == "judge"]
    assert found.severity == "problem"
    assert "cannot be reached" in found.evidence
    assert found.fix.startswith("start it")


def test_a_run_ends_before_sampling_when_a_judge_server_is_away(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(JudgeError, match=r"judge 'prose': the judge server cannot be reached"):
        run_experiment(judged(tmp_path, url), folder, source="")
    assert not list(folder.path.glob("rounds/**/trajectories/*"))


def test_calls_tokens_and_the_proxy_score_of_a_judge_are_metrics_of_the_round(
    tmp_path: Path,
) -> None:
    with judge_server() as server:
        summary = run_experiment(
            judged(tmp_path, server.url), RunFolder(tmp_path / "run"), source=""
        )
        metrics = summary.results[1].metrics
        asked = server.asked_in_earnest
    assert asked > 0
    assert metrics["judge/prose/calls"] == asked
    assert metrics["judge/prose/prompt_tokens"] == asked * PROMPT_TOKENS
    assert metrics["judge/prose/completion_tokens"] == asked * COMPLETION_TOKENS
    assert 0.0 < metrics["judge/prose/score"] < 1.0
    assert metrics["judge/prose/error_share"] == 0.0
    assert metrics["judge/prose/abstain_share"] == 0.0
    assert "judge/prose/calls_without_token_count" not in metrics


def test_a_server_that_counts_no_tokens_is_said_to_count_none(tmp_path: Path) -> None:
    with judge_server(usage=False) as server:
        summary = run_experiment(
            judged(tmp_path, server.url), RunFolder(tmp_path / "run"), source=""
        )
    metrics = summary.results[1].metrics
    assert metrics["judge/prose/calls_without_token_count"] == metrics["judge/prose/calls"] > 0


def test_soft_labels_without_a_judge_are_named_by_the_plan(tmp_path: Path) -> None:
    soft = {"engine": {"type": "fake"}, "loss": {"type": "dpo", "soft_labels": True}}
    (line,) = planned(fake_config(tmp_path, training=soft)).of("warning")
    assert "training.loss.soft_labels" in line.found
    judge = {"type": "pairwise", "backend": {"type": "fake"}}
    assert not planned(fake_config(tmp_path, training=soft, judges=[judge])).of("warning")
    hard = {"engine": {"type": "fake"}, "loss": {"type": "dpo", "soft_labels": False}}
    assert planned(fake_config(tmp_path, training=hard)).lines == []
