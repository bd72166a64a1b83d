"""What every rollout engine promises: ids and log-probs that belong together, and weights it can name.

The fake and transformers run here; vLLM keeps the same contract in `tests/e2e/test_vllm_engine.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import PolicyStoreError
from policies.base.records import Message, PolicyVersion, Sampling, StopReason
from policies.storage.fake_model import write_fake_model
from tests.support.architectures import LINEAR, write_architecture
from tests.support.training_cases import version, write_tiny_model
from workers.rollout.engine import ENGINES, Generation, GenerationRequest, RolloutEngine

TEMPLATE = (
    "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}w7{% endif %}"
)


def model(name: str, path: Path, seed: int) -> PolicyVersion:
    if name == "fake":
        return version(write_fake_model(path, skill=0.3 + seed * 0.5), number=seed)
    write_tiny_model(path, seed=seed)
    (path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return version(path, number=seed)


@pytest.fixture(params=["fake", "transformers"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> RolloutEngine:
    built: RolloutEngine = create(
        ENGINES.parse(request.param),
        policy=model(request.param, tmp_path / "v0", 0),
        dtype="float32",
        seed=0,
    )
    return built


def requests(engine: RolloutEngine, count: int = 6, **sampling: Any) -> list[GenerationRequest]:
    settings = Sampling(**({"temperature": 1.0, "max_tokens": 24} | sampling))
    found = []
    for index in range(count):
        ids = engine.render(
            [Message(role="user", content="w9 " * (1 + index % 3) + "What is 6 times 7?")]
        )
        found.append(GenerationRequest(ids, settings, seed=index))
    return found


def key(generations: Sequence[Generation]) -> list[tuple[int, ...]]:
    return [g.token_ids for g in generations]


def test_every_sampled_token_has_a_logprob_of_its_own(engine: RolloutEngine) -> None:
    generations = engine.generate(requests(engine))
    assert len(generations) == 6
    for each in generations:
        assert len(each.token_ids) == len(each.logprobs) > 0
        assert all(value <= 0.0 for value in each.logprobs)


def test_the_budget_cuts_and_says_so(engine: RolloutEngine) -> None:
    for each in engine.generate(requests(engine, max_tokens=2)):
        assert len(each.token_ids) <= 2
        if len(each.token_ids) == 2 and each.stop_reason is StopReason.LENGTH:
            break
    else:
        pytest.fail("no completion ran into a budget of two tokens")


def test_an_unseen_prompt_renders_the_same_each_time_and_ends_where_the_policy_begins(
    engine: RolloutEngine,
) -> None:
    messages = [Message(role="user", content="w5 What is 6 times 7?")]
    ids = engine.render(messages)
    assert ids
    assert engine.render(messages) == ids
    assert all(isinstance(i, int) for i in ids)


def test_answers_come_in_the_order_of_the_requests(engine: RolloutEngine) -> None:
    asked = requests(engine, temperature=0.0)
    together = key(engine.generate(asked))
    one_by_one = [key(engine.generate([each]))[0] for each in asked]
    assert together == one_by_one


def test_new_weights_are_served_in_place_and_the_old_ones_come_back(
    engine: RolloutEngine, tmp_path: Path
) -> None:
    old = engine.serving
    asked = requests(engine, count=12)
    before = key(engine.generate(asked))
    name = "fake" if type(engine).__name__ == "FakeEngine" else "transformers"
    engine.load_policy(model(name, tmp_path / "v1", 1))
    assert engine.serving.number == 1
    assert key(engine.generate(asked)) != before
    engine.load_policy(old)
    assert engine.serving == old
    assert key(engine.generate(asked)) == before


def test_weights_that_changed_since_they_were_published_are_not_served(
    engine: RolloutEngine, tmp_path: Path
) -> None:
    name = "fake" if type(engine).__name__ == "FakeEngine" else "transformers"
    candidate = model(name, tmp_path / "v1", 1)
    weights = Path(candidate.path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    before = engine.serving
    with pytest.raises(PolicyStoreError, match="is not what was published"):
        engine.load_policy(candidate)
    assert engine.serving == before


def test_a_choice_is_kept_to(engine: RolloutEngine) -> None:
    asked = [
        GenerationRequest(
            r.prompt_token_ids, Sampling(temperature=1.0), r.seed, choices=("w8 w9", "w4")
        )
        for r in requests(engine)
    ]
    assert {g.text for g in engine.generate(asked)} <= {"w8 w9", "w4"}


def test_what_is_submitted_while_others_are_under_way_comes_out_under_its_own_ticket(
    engine: RolloutEngine,
) -> None:
    asked = requests(engine, temperature=0.0)
    alone = key(engine.generate(asked))
    assert engine.advance() == []
    tickets = [engine.submit(each) for each in asked[:3]]
    answers = dict(engine.advance())
    tickets += [engine.submit(each) for each in asked[3:]]
    while len(answers) < len(tickets):
        answers.update(engine.advance())
    assert len(set(tickets)) == 6
    assert key([answers[ticket] for ticket in tickets]) == alone
    assert engine.advance() == [], "each answer comes once"


def test_what_was_abandoned_is_not_answered(engine: RolloutEngine) -> None:
    first, second, *_ = requests(engine)
    engine.submit(first)
    engine.abandon()
    kept = engine.submit(second)
    answers: list[tuple[int, Generation]] = []
    while not answers:
        answers = engine.advance()
    assert [ticket for ticket, _ in answers] == [kept]
    assert engine.advance() == []


def test_a_prompt_is_what_the_chat_format_writes_and_a_turn_ends_with_its_terminator(
    engine: RolloutEngine,
) -> None:
    messages = [Message(role="user", content="w9 What is 6 times 7?")]
    assert engine.render(messages) == engine.chat.encode(
        engine.chat.text(messages, generation_prompt=True)
    )
    assert engine.chat.terminators
    ended = [
        g
        for g in engine.generate(requests(engine, max_tokens=200))
        if g.stop_reason is StopReason.STOP
    ]
    assert ended
    assert all(g.token_ids[-1] in engine.chat.terminators for g in ended)
    assert all(not set(g.token_ids[:-1]) & engine.chat.terminators for g in ended)


def varied(engine: RolloutEngine, count: int = 12, **sampling: Any) -> list[GenerationRequest]:
    """Requests whose prompts, and so whose greedy answers, all differ, for a model of words and for the fake."""
    settings = Sampling(**({"temperature": 0.0, "max_tokens": 24} | sampling))
    prompts = [
        (*range(4, 5 + n), *engine.render([Message(role="user", content=f"What is 6 times {n}?")]))
        for n in range(count)
    ]
    return [GenerationRequest(ids, settings, seed=n) for n, ids in enumerate(prompts)]


def until(text_of: Any, ids: Sequence[int], stop: str) -> list[int]:
    """The shortest beginning of `ids` whose text has `stop` in it; all of them when there is none."""
    return next(
        (list(ids[:n]) for n in range(1, len(ids) + 1) if stop in text_of(ids[:n])), list(ids)
    )


def test_a_row_ends_at_its_own_stop_string_whatever_the_others_in_its_batch_do(
    engine: RolloutEngine,
) -> None:
    free = engine.generate(varied(engine))
    assert len(set(key(free))) > 4
    words = {w for g in free for w in g.text.split() if w.isascii()}
    ended_early = 0
    for stop in sorted(words)[:8]:
        stopped = engine.generate(varied(engine, stop=(stop,)))
        for whole, part in zip(free, stopped, strict=True):
            expected = until(engine.chat.decode, whole.token_ids, stop)
            assert list(part.token_ids) == expected
            assert part.logprobs == pytest.approx(whole.logprobs[: len(expected)], abs=1e-5)
            ended_early += len(expected) < len(whole.token_ids)
            if stop in part.text:
                assert part.stop_reason is StopReason.STOP
    assert ended_early, "rows ended before their batch did"


def test_a_row_that_never_ends_by_itself_says_so_beside_rows_that_did(
    engine: RolloutEngine,
) -> None:
    free = engine.generate(varied(engine, temperature=1.0, max_tokens=12))
    for each in free:
        ended = each.token_ids[-1] in engine.chat.terminators
        assert (each.stop_reason is StopReason.STOP) == ended
        assert ended or len(each.token_ids) == 12


def test_what_is_sampled_follows_from_the_request_and_not_from_who_samples(
    engine: RolloutEngine,
) -> None:
    name = "fake" if type(engine).__name__ == "FakeEngine" else "transformers"
    another: RolloutEngine = create(
        ENGINES.parse(name), policy=engine.serving, dtype="float32", seed=12345
    )
    asked = requests(engine)
    assert key(another.generate(asked)) == key(engine.generate(asked))
    others = [GenerationRequest(r.prompt_token_ids, r.sampling, r.seed + 100) for r in asked]
    assert key(engine.generate(others)) != key(engine.generate(asked))


FOLDER_SETTINGS: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    "words that may not be": {
        "suppress_tokens": list(range(4, 50)),
        "begin_suppress_tokens": list(range(30, 60)),
        "bad_words_ids": [[i] for i in range(4, 30)],
    },
    "words that must be": {"forced_bos_token_id": 9, "forced_eos_token_id": 2},
    "truncations": {
        "do_sample": True,
        "min_p": 0.5,
        "typical_p": 0.2,
        "epsilon_cutoff": 0.05,
        "eta_cutoff": 0.05,
        "top_k": 1,
        "top_p": 0.1,
        "temperature": 0.1,
    },
    "lengths": {"min_new_tokens": 20, "min_length": 30, "max_length": 5, "max_time": 1e-6},
    "lengths by decay": {"exponential_decay_length_penalty": [1, 5.0]},
    "search": {"num_beams": 3, "num_return_sequences": 2, "guidance_scale": 3.0},
    "bias": {"sequence_bias": [[[9], 50.0]], "renormalize_logits": True},
    "a watermark": {"watermarking_config": {"bias": 8.0, "seeding_scheme": "selfhash"}},
}


@pytest.mark.parametrize("name", FOLDER_SETTINGS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_sampling_setting_of_the_models_folder_changes_what_transformers_samples(
    name: str, temperature: float, tmp_path: Path
) -> None:
    policy = model("transformers", tmp_path / "v0", 0)
    plain: RolloutEngine = create(ENGINES.parse("transformers"), policy=policy, dtype="float32")
    expected = key(plain.generate(requests(plain, temperature=temperature)))
    settings = Path(policy.path) / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": 2, **FOLDER_SETTINGS[name]}), encoding="utf-8")
    built: RolloutEngine = create(ENGINES.parse("transformers"), policy=policy, dtype="float32")
    assert key(built.generate(requests(built, temperature=temperature))) == expected


def test_the_end_of_sequence_ids_of_the_folder_are_the_one_thing_that_is_read(
    tmp_path: Path,
) -> None:
    policy = model("transformers", tmp_path / "v0", 0)
    plain: RolloutEngine = create(ENGINES.parse("transformers"), policy=policy, dtype="float32")
    free = plain.generate(requests(plain, temperature=0.0))
    chosen = next(g.token_ids[1] for g in free if len(g.token_ids) > 3)
    settings = Path(policy.path) / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [2, chosen]}), encoding="utf-8")
    built: RolloutEngine = create(ENGINES.parse("transformers"), policy=policy, dtype="float32")
    for whole, part in zip(free, built.generate(requests(built, temperature=0.0)), strict=True):
        ends = [n for n, token in enumerate(whole.token_ids, 1) if token in (2, chosen)]
        assert part.token_ids == whole.token_ids[: ends[0] if ends else None]


def test_a_budget_beyond_the_models_positions_is_cut_there(tmp_path: Path) -> None:
    write_architecture(tmp_path / "v0", "gpt2", {**LINEAR["gpt2"], "n_positions": 24})
    (tmp_path / "v0" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    policy = version(tmp_path / "v0")
    built: RolloutEngine = create(ENGINES.parse("transformers"), policy=policy, dtype="float32")
    asked = requests(built, max_tokens=64)
    for request, each in zip(asked, built.generate(asked), strict=True):
        assert len(request.prompt_token_ids) + len(each.token_ids) <= 24


def test_transformers_logprobs_are_those_of_a_plain_forward_pass(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    policy = model("transformers", tmp_path / "v0", 0)
    built: RolloutEngine = create(
        ENGINES.parse("transformers"), policy=policy, dtype="float32", seed=0
    )
    asked = requests(built, temperature=0.7)
    plain = AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.float32)
    for request, generation in zip(asked, built.generate(asked), strict=True):
        ids = torch.tensor([[*request.prompt_token_ids, *generation.token_ids]])
        logprobs = torch.log_softmax(plain(input_ids=ids).logits[0].detach().float(), dim=-1)
        start = len(request.prompt_token_ids)
        expected = [
            float(logprobs[start - 1 + n, token]) for n, token in enumerate(generation.token_ids)
        ]
        assert generation.logprobs == pytest.approx(expected, abs=1e-4)
