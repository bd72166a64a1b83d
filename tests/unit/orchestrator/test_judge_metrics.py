"""What a judge costs and says, as numbers of the round: scores, calls, tokens, agreement; counted once, never lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.driver.launch import run_experiment
from orchestrator.inspect.views.display import rounds_table
from orchestrator.rounds.metrics import collection_metrics
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.phases import Collected
from orchestrator.runs.report import COLUMNS
from orchestrator.tracking.metric_names import clean_metrics
from policies.base.component import create
from policies.base.records import Message, PolicyVersion, RoundResult
from policies.storage.fake_model import write_fake_model
from policies.storage.policy_store import PolicyStore
from tests.support.fake_runs import fake_config
from tests.support.judge_server import COMPLETION_TOKENS, PROMPT_TOKENS, judge_server
from workers.judge.judge import BACKENDS, BackendContext, JudgeBackend, Question, Reply, Usage
from workers.judge.reply_cache import CachedBackend, ReplyCache


def no_model(name: object) -> PolicyVersion:
    raise LookupError(name)


CONTEXT = BackendContext(policy_version=no_model, model_version=no_model)


def question(text: str) -> Question:
    return Question(messages=(Message(role="user", content=text),), max_tokens=50)


def metrics_of(counts: dict[str, float]) -> dict[str, float]:
    return collection_metrics(
        Collected(digests={}, num_trajectories=1, num_examples=0, counts=counts, dropped={})
    )


def cached(backend: JudgeBackend) -> CachedBackend:
    return CachedBackend(backend, cache=ReplyCache(None), scope="")


def test_a_model_of_ours_counts_the_tokens_that_it_read_and_wrote(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path / "policies")
    store.adopt_initial(write_fake_model(tmp_path / "model", skill=1.0))
    context = BackendContext(policy_version=store.get, model_version=no_model)
    backend = create(BACKENDS.parse({"type": "engine", "engine": "fake"}), context=context)
    (reply,) = backend.ask([question("What is 7 times 8?")])
    assert reply.usage.calls == 1
    assert reply.usage.prompt_tokens == len(
        backend._engine.render(question("What is 7 times 8?").messages)
    )
    assert reply.usage.completion_tokens > 0
    assert reply.usage.uncounted == 0


def test_what_the_cache_knows_costs_nothing() -> None:
    with judge_server() as server:
        inner = create(
            BACKENDS.parse({"type": "openai", "base_url": server.url, "model": "judge-small"}),
            context=CONTEXT,
        )
        backend = cached(inner)
        asked = [question("a"), question("a"), question("b")]
        for reply, each in zip(backend.ask(asked), asked, strict=True):
            backend.keep(each, reply)
        backend.ask(asked)
    assert (backend.usage["calls"], backend.hits) == (2, 4)
    assert backend.usage["prompt_tokens"] == 2 * PROMPT_TOKENS
    assert backend.usage["completion_tokens"] == 2 * COMPLETION_TOKENS


def test_repeats_are_calls_too() -> None:
    with judge_server(status=503) as server:
        settings = {"max_retries": 2, "retry_seconds": 0.001, "model": "judge-small"}
        backend = create(
            BACKENDS.parse({"type": "openai", "base_url": server.url, **settings}), context=CONTEXT
        )
        (reply,) = backend.ask([question("a")])
    assert reply.error is not None
    assert (reply.usage.calls, reply.usage.uncounted) == (3, 3)


class Silent(JudgeBackend):
    """A backend of a user's own that counts nothing."""

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        return [Reply(text="Score: 3") for _ in questions]


def test_calls_of_a_backend_that_counts_no_tokens_are_counted_as_such() -> None:
    backend = cached(Silent())
    backend.ask([question("a"), question("b")])
    assert backend.usage["calls"] == backend.usage["uncounted"] == 2
    assert Usage() == Usage(calls=0, prompt_tokens=0, completion_tokens=0, uncounted=0)


def test_agreement_is_a_share_of_the_comparisons_that_were_asked_and_answered() -> None:
    source = "judge/sources/pair"
    found = metrics_of(
        {
            f"{source}/scored": 4.0,
            f"{source}/score_sum": 2.0,
            f"{source}/abstained": 1.0,
            f"{source}/comparisons": 6.0,  # two of them between equal texts
            f"{source}/agreed": 3.0,
            f"{source}/disagreed": 1.0,
            f"{source}/ties": 1.0,
            f"{source}/preferred_first": 1.0,
            f"{source}/calls": 8.0,
        }
    )
    assert found["judge/pair/agreement"] == 0.75
    assert found["judge/pair/ties"] == 0.25
    assert found["judge/pair/preferred_first"] == 0.25
    assert found["judge/pair/score"] == 0.5
    assert found["judge/pair/abstain_share"] == 0.2
    assert found["judge/pair/calls"] == 8.0


def test_margins_labels_and_the_length_gap_of_the_examples_are_metrics() -> None:
    found = metrics_of(
        {
            "prefer/desirable": 3.0,
            "prefer/undesirable": 1.0,
            "prefer/score_sum": 3.0,
            "prefer/pairs": 4.0,
            "prefer/margin_sum": 2.0,
            "prefer/soft_label_sum": 3.0,
            "prefer/contradicted": 1.0,
            "prefer/chosen_tokens": 40.0,
            "prefer/rejected_tokens": 100.0,
        }
    )
    assert found["prefer/score"] == 0.75
    assert found["prefer/margin"] == 0.5
    assert found["prefer/soft_label"] == 0.75
    assert found["prefer/contradicted_share"] == 0.25
    assert found["prefer/length_gap"] == -15.0
    single = metrics_of(
        {
            "prefer/examples_desirable": 1.0,
            "prefer/examples_undesirable": 3.0,
            "prefer/chosen_tokens": 10.0,
            "prefer/rejected_tokens": 60.0,
        }
    )
    assert single["prefer/desirable_share"] == 0.25
    assert single["prefer/length_gap"] == -10.0


def test_a_run_shows_them_by_round_under_names_that_tracking_takes(tmp_path: Path) -> None:
    judge = {"type": "pairwise", "name": "taste", "backend": {"type": "fake", "rule": "coin"}}
    config = fake_config(tmp_path, judges=[judge], rounds=1, preferences={"type": "best_vs_worst"})
    results = run_experiment(config, RunFolder(tmp_path / "run"), source="").results
    metrics = results[1].metrics
    wanted = {"score", "calls", "prompt_tokens", "completion_tokens", "cache_hits", "agreement"}
    assert {f"judge/taste/{name}" for name in wanted} <= set(metrics)
    assert {"prefer/score", "prefer/margin", "prefer/soft_label", "prefer/length_gap"} <= set(
        metrics
    )
    assert 0.0 < metrics["prefer/soft_label"] < 1.0
    kept, dropped = clean_metrics(metrics)
    assert set(metrics) - {n for n in metrics if "@" in n} <= set(kept)
    assert dropped == []
    assert "prefer/score" in COLUMNS
    assert "taste calls" in shown(results)


def shown(results: Sequence[RoundResult]) -> str:
    console: Any = Console(width=400)
    with console.capture() as text:
        console.print(rounds_table(results, {}))
    found: str = text.get()
    return found


@pytest.mark.parametrize("rule", ["garbage", "error"])
def test_answers_that_cannot_be_used_cost_all_the_same(tmp_path: Path, rule: str) -> None:
    judge = {"type": "rubric", "name": "taste", "backend": {"type": "fake", "rule": rule}}
    config = fake_config(
        tmp_path,
        judges=[judge],
        rounds=1,
        limits={"max_verdict_errors": 1.0},
        feedback={"on_error": "ignore_source"},
    )
    metrics = run_experiment(config, RunFolder(tmp_path / "run"), source="").results[1].metrics
    assert metrics["judge/taste/error_share"] == 1.0
    assert metrics["judge/taste/calls"] > 0
    assert "judge/taste/score" not in metrics
