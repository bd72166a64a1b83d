"""The preflight of a chat template: the first prompt as the policy reads it, and what no run could mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.files import load_config
from orchestrator.plan.lines import Plan
from orchestrator.plan.preflight import make_plan
from orchestrator.plan.template import job_of
from policies.base.component import create
from tests.support.template_folders import of_tests, tokenizer_with, write_model
from workers.rollout.preview_child import look_at_template

CLOCK = "<|im_start|>system\nToday is {{ strftime_now('%d %B %Y') }}.<|im_end|>\n" + of_tests(
    "chatml"
).replace("{%- for", "{% for", 1)


def planned(tmp_path: Path, template: str, *overrides: str, **options: Any) -> Plan:
    """What the other process finds, without starting one: loading transformers again takes seconds each time."""
    model = write_model(tmp_path / "model", tokenizer_with(template, **options))
    settings = ["rollout.engine={type: vllm}", "tracking.enabled=false", f"policy.model={model}"]
    config = load_config("quickstart", [*settings, *overrides]).config
    plan = Plan()
    for finding in look_at_template(
        job_of(config, str(model), create(config.prompts.train).load())
    ):
        plan.add(finding.what, finding.found, finding.verdict)
    return plan


def lines(plan: Plan, what: str) -> str:
    return "\n".join(f"{line.verdict}: {line.found}" for line in plan.lines if line.what == what)


def test_the_plan_shows_the_first_prompt_with_its_control_tokens_and_the_date(
    tmp_path: Path,
) -> None:
    model = write_model(tmp_path / "model", tokenizer_with(CLOCK))
    settings = ["rollout.engine={type: vllm}", "tracking.enabled=false", f"policy.model={model}"]
    config = load_config("quickstart", [*settings, "rollout.template_date=2024-02-29"]).config
    plan = make_plan(config, run_folder=tmp_path / "runs" / "x-1")
    assert plan.fits, plan.of("problem")
    (shown,) = [line.found for line in plan.lines if line.what == "first prompt"]
    assert shown.splitlines()[1:] == [
        "<|im_start|>system",
        "Today is 29 February 2024.<|im_end|>",
        "<|im_start|>user",
        "What is 2 times 2?<|im_end|>",
        "<|im_start|>assistant",
    ]
    assert "ok: it tells the date: 2024-02-29, which the run keeps" in lines(plan, "chat template")
    assert "a turn ends with <|im_end|>" in lines(plan, "chat template")


def test_warnings_of_a_template_say_what_to_set_and_go_away_when_it_is_set(tmp_path: Path) -> None:
    arguments = "rollout.template_arguments={enable_thinking: false}"
    said = lines(planned(tmp_path, of_tests("chatml"), arguments, adds_bos=True), "chat template")
    assert "warning: the tokenizer puts <s> before a text" in said
    assert "Fix: set rollout.template_bos: true" in said
    assert "warning: rollout.template_arguments.enable_thinking changes nothing" in said
    switch = of_tests("chatml") + "{% if enable_thinking is false %}<think></think>{% endif %}"
    remedied = planned(tmp_path, switch, arguments, "rollout.template_bos=true", adds_bos=True)
    assert "warning" not in lines(remedied, "chat template")
    assert "<s><|im_start|>user" in lines(remedied, "first prompt")
    assert "<think></think>" in lines(remedied, "first prompt")


@pytest.mark.parametrize("calls", ["hermes"])
def test_a_strategy_that_the_template_cannot_carry_is_a_problem_whose_remedy_works(
    tmp_path: Path, calls: str
) -> None:
    strategy = f"rollout.strategy={{type: tool_loop, tools: [{{type: calculator}}], calls: {{type: {calls}}}}}"
    refused = planned(tmp_path, of_tests("chatml"), strategy)
    assert "does not tell the policy of its tools" in lines(refused, "rollout.strategy")
    assert "Fix: set rollout.template_tools: text" in lines(refused, "rollout.strategy")
    remedied = planned(tmp_path, of_tests("chatml"), strategy, "rollout.template_tools=text")
    assert remedied.fits, remedied.of("problem")
    assert '"calculator"' in lines(remedied, "first prompt")


def test_a_prompt_with_a_role_that_the_template_refuses_is_a_problem(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": r, "content": c} for r, c in (("system", "Be brief."), ("user", "1 + 1?"))]
    rows.write_text(json.dumps({"messages": messages, "answer": 2}) + "\n")
    source = f"prompts.train={{type: jsonl, path: {rows}, columns: {{messages: messages}}}}"
    refused = planned(tmp_path, of_tests("gemma"), source, "prompts.per_round=1")
    assert "there is no system role" in lines(refused, "chat template")
    assert "Fix: set rollout.template_roles: user_only" in lines(refused, "chat template")
    one = [source, "prompts.per_round=1", "rollout.template_roles=user_only"]
    assert "Be brief.\n\n1 + 1?" in lines(
        planned(tmp_path, of_tests("gemma"), *one), "first prompt"
    )


def test_a_long_first_prompt_is_shown_by_its_ends(tmp_path: Path) -> None:
    long = "{{ 'x' * 5000 }}" + of_tests("chatml")
    shown = lines(planned(tmp_path, long), "first prompt")
    assert "characters ...]" in shown
    assert shown.endswith("<|im_start|>assistant\n")
    assert len(shown) < 2000


def test_a_rewritten_history_is_told_with_its_reason(tmp_path: Path) -> None:
    strategy = "rollout.strategy={type: self_refine}"
    plan = planned(tmp_path, of_tests("thoughts_dropped"), strategy)
    assert plan.fits
    assert "the sampled tokens are kept" in lines(plan, "chat template")
    refused = planned(
        tmp_path,
        of_tests("thoughts_dropped"),
        "rollout.strategy={type: self_refine, rewritten_history: refuse}",
    )
    said = lines(refused, "rollout.strategy")
    assert "Fix: set rollout.strategy.rewritten_history to 'auto' or 'keep'" in said


def test_an_environment_that_cannot_be_played_is_refused_by_the_plan_of_any_engine(
    tmp_path: Path,
) -> None:
    world = "rollout.strategy={type: episode, environment: {type: gymnasium, id: Pendulum-v1}}"
    config = load_config("fake-smoke", [world, "verifiers=[{type: outcome}]"]).config
    plan = make_plan(config, run_folder=tmp_path / "x-1")
    assert "no turn of the policy can be an action" in lines(plan, "rollout.strategy")
