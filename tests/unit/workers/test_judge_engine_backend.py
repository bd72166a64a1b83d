"""A model of ours as judge: frozen at a version, one generate call, one bad question harms no other."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from policies.base.component import Component, create
from policies.base.errors import JudgeError
from policies.base.records import Message, PolicyVersion, StopReason
from policies.storage.policy_store import PolicyStore
from workers.judge.judge import BACKENDS, BackendContext, JudgeBackend, Question
from workers.rollout.chat.chat_settings import ChatSettings
from workers.rollout.engine import Generation, GenerationRequest, RolloutEngine
from workers.rollout.engines.fake import FakeChat


class Echo(RolloutEngine):
    """Writes the question back; ids are characters. Fails on prompts with `bad`."""

    built: ClassVar[list[dict[str, Any]]] = []
    calls: ClassVar[list[int]] = []
    seeds: ClassVar[list[int]] = []

    chat = FakeChat()

    class Config(Component.Config):
        """Settings of the echo."""

    def __init__(self, config: Component.Config, **runtime: Any) -> None:
        Echo.built.append(runtime)
        self.serving = runtime["policy"]

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, object]] = ()
    ) -> tuple[int, ...]:
        if "no template" in messages[0].content:
            raise ValueError("template")
        return tuple(ord(c) for c in messages[0].content)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        Echo.calls.append(len(requests))
        Echo.seeds.extend(r.seed for r in requests)
        texts = ["".join(chr(i) for i in r.prompt_token_ids) for r in requests]
        if any("bad" in text for text in texts):
            raise ValueError("prompt longer than the model")
        return [
            Generation.failed("aborted")
            if "broken off" in text
            else Generation(
                token_ids=(1,),
                logprobs=(0.0,),
                text=f"re: {text}",
                stop_reason=StopReason.LENGTH if "endless" in text else StopReason.STOP,
            )
            for text in texts
        ]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    for log in (Echo.built, Echo.calls, Echo.seeds):
        log.clear()


def version(number: int) -> PolicyVersion:
    return PolicyVersion(
        number=number, round=number, parent=None, path=f"p/{number}", digest=f"{number}" * 64
    )


def model(name: str) -> PolicyVersion:
    return PolicyVersion(number=0, round=0, parent=None, path=name, digest="m" * 64)


CONTEXT = BackendContext(
    policy_version=version, model_version=model, dtype="bfloat16", seed=3, engine_seed=8
)


def backend(**settings: object) -> JudgeBackend:
    Echo.Config.component = Echo
    config = BACKENDS.parse({"type": "engine", "engine": Echo.Config(type="echo"), **settings})
    built: JudgeBackend = create(config, context=CONTEXT)
    return built


def question(text: str, vote: int = 0) -> Question:
    return Question(messages=(Message(role="user", content=text),), max_tokens=5, vote=vote)


def test_the_policy_judges_frozen_at_version_zero_unless_told_otherwise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        backend().start()
        backend(version=2, dtype="float32").start()
        backend(model="hub/name").start()
    assert [(b["policy"].path, b["dtype"], b["seed"]) for b in Echo.built] == [
        ("p/0", "bfloat16", 8),
        ("p/2", "float32", 8),
        ("hub/name", "bfloat16", 8),
    ]
    assert len([r for r in caplog.records if "prefer text like their own" in r.message]) == 2
    assert backend(version=2).identity() == "echo: policy version 2 222222222222 bfloat16"
    assert backend(model="hub/name").identity() == "echo: hub/name mmmmmmmmmmmm bfloat16"


def test_all_questions_go_into_one_generate_call_and_answers_keep_their_order() -> None:
    replies = backend().ask([question(str(i)) for i in range(5)])
    assert [r.text for r in replies] == [f"re: {i}" for i in range(5)]
    assert Echo.calls == [5]
    assert len(Echo.built) == 1


def test_an_answer_that_the_engine_broke_off_is_no_answer() -> None:
    replies = backend().ask([question("a"), question("broken off")])
    assert [(r.text, r.error) for r in replies] == [("re: a", None), (None, "aborted")]


def test_a_question_that_the_engine_refuses_harms_no_other() -> None:
    texts = ["a", "bad", "no template", "b", "c", "bad too", "d"]
    replies = backend().ask([question(text) for text in texts])
    assert [r.text for r in replies] == ["re: a", None, None, "re: b", "re: c", None, "re: d"]
    assert "ValueError: prompt longer than the model" in (replies[1].error or "")
    assert "the chat template failed" in (replies[2].error or "")


def test_seeds_follow_content_and_vote() -> None:
    backend().ask([question("a"), question("a", vote=1), question("b"), question("a")])
    assert len(set(Echo.seeds)) == 3
    assert Echo.seeds[0] == Echo.seeds[3]


def test_a_version_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="for the run's own policy only"):
        backend(model="hub/name", version=1)


def test_an_engine_that_cannot_start_is_a_judge_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(self: Echo, config: Component.Config, **runtime: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Echo, "__init__", explode)
    with pytest.raises(JudgeError, match=r"'echo' could not start: RuntimeError: out of memory"):
        backend().start()


def test_the_shipped_scripted_engine_serves_a_judge_from_the_policy_store(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "fake_policy.json").write_text('{"skill": 1.0}')
    (folder / "model.safetensors").write_bytes(b"weights")
    store = PolicyStore(tmp_path / "policies")
    store.adopt_initial(folder)
    context = pickle.loads(
        pickle.dumps(BackendContext(policy_version=store.get, model_version=model))
    )
    judge = create(BACKENDS.parse({"type": "engine", "engine": "fake"}), context=context)
    asked = Question(messages=(Message(role="user", content="What is 7 times 8?"),), max_tokens=50)
    first, second = judge.ask([asked, asked])
    assert "56" in first.text
    assert first.text == second.text


def test_an_answer_that_was_cut_is_an_error_for_half_a_score_is_another_score() -> None:
    replies = backend().ask([question("endless"), question("short")])
    assert (replies[0].text, replies[1].text) == (None, "re: short")
    assert "max_tokens" in str(replies[0].error)


def test_a_thought_that_the_judges_template_opened_is_part_of_what_is_read() -> None:
    assert backend().ask([question("hm <think>")])[0].text == "<think>re: hm <think>"


def test_a_judge_is_told_the_runs_template_arguments_only_when_it_is_the_policy() -> None:
    run = ChatSettings(template_arguments={"enable_thinking": True}, date="2024-02-29")

    def identity(**settings: object) -> str:
        Echo.Config.component = Echo
        config = BACKENDS.parse({"type": "engine", "engine": Echo.Config(type="echo"), **settings})
        built: JudgeBackend = create(config, context=replace(CONTEXT, chat=run))
        return built.identity()

    assert identity().endswith(' bfloat16 {"enable_thinking": true}')
    assert identity(model="hub/name").endswith(" bfloat16")
    own = identity(template_arguments={"enable_thinking": False})
    assert own.endswith('{"enable_thinking": false}'), "and its replies are cached apart"
    with pytest.raises(ValueError, match="tools cannot be set"):
        identity(template_arguments={"tools": []})
