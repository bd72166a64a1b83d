"""Judges that compute scores need no chat backend: batches, raw rewards, errors of one attempt alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.model_files import model_as_version
from policies.base.component import create
from policies.base.component_walk import requirements_of
from policies.base.errors import PawlError
from policies.base.records import (
    Message,
    PolicyVersion,
    Prompt,
    Span,
    Step,
    Turn,
    Verdict,
    VerdictStatus,
)
from policies.base.requirements import Requirements
from policies.storage.artifacts import read_records, write_records
from tests.support.attempts import attempt
from tests.support.committing import committed
from workers.judge.judge import JUDGES, BackendContext, Judge, JudgeJob
from workers.judge.scoring_judge import ScoringJudge, ToScore
from workers.judge.worker import JudgeWorker

PROMPT = Prompt(id="p", messages=(Message(role="user", content="Say something."),))


def no_version(number: int) -> PolicyVersion:
    raise LookupError(f"no version {number}")


def no_model(name: str) -> PolicyVersion:
    raise LookupError(f"no model {name}")


CONTEXT = BackendContext(policy_version=no_version, model_version=no_model)


class Picky(ScoringJudge):
    """Scores the length, cannot stand the word `bad`, and remembers what it was asked."""

    class Config(Judge.Config):
        """Raw or not, as the test says."""

        raw: bool = True

        def requires(self) -> Requirements:
            return Requirements(raw_scores=self.raw)

    def __init__(self, config: Judge.Config, *, context: BackendContext) -> None:
        super().__init__(config, context=context)
        self.asked: list[list[str]] = []

    def score(self, batch: Sequence[ToScore]) -> list[float]:
        self.asked.append([each.answer for each in batch])
        if any("bad" in each.answer for each in batch):
            raise ValueError("bad word")
        return [float("nan") if each.answer == "nan" else float(len(each.answer)) for each in batch]


def judged(*texts: str, raw: bool = True) -> tuple[Picky, list[Verdict]]:
    judge = Picky(Picky.Config(type="picky", raw=raw), context=CONTEXT)
    attempts = tuple(attempt(text, name=str(i), sample_index=i) for i, text in enumerate(texts))
    (judgement,) = judge.judge([JudgeJob(prompt=PROMPT, trajectories=attempts, seed=0)])
    return judge, judgement.verdicts


def test_all_attempts_are_scored_in_one_call_and_any_finite_number_is_a_score() -> None:
    judge, verdicts = judged("four", "seven!!")
    assert judge.asked == [["four", "seven!!"]]
    assert [(v.score, v.raw) for v in verdicts] == [(4.0, True), (7.0, True)]


def test_a_call_that_fails_is_tried_in_halves_down_to_the_attempt_at_fault() -> None:
    _, verdicts = judged("one", "bad", "three", "nan")
    assert [v.score for v in verdicts] == [3.0, None, 5.0, None]
    assert "bad word" in (verdicts[1].error or "")
    assert "a score must be a finite number" in (verdicts[3].error or "")


def test_an_attempt_without_an_answer_is_not_asked_about_and_gets_the_lowest_of_its_group() -> None:
    judge, verdicts = judged("four", " ", "seven!!")
    assert judge.asked == [["four", "seven!!"]]
    assert [v.score for v in verdicts] == [4.0, 4.0, 7.0]
    _, alone = judged("")
    assert alone[0].status is VerdictStatus.ABSTAINED


def test_a_score_above_one_is_an_error_where_scores_are_not_raw() -> None:
    _, verdicts = judged("x", "", "seven!!", raw=False)
    assert [v.score for v in verdicts] == [1.0, 0.0, None]
    assert "must be in [0, 1]" in (verdicts[2].error or "")


def test_a_step_is_scored_with_what_its_turn_says_before_it() -> None:
    parts = (Step(start=0, end=1, text="First. "), Step(start=1, end=2, text="Then."))
    turn = Turn(
        role="policy",
        token_ids=(1, 2),
        text="First. Then.",
        logprobs=(-1.0, -1.0),
        stop_reason="stop",  # type: ignore[arg-type]
        steps=parts,
    )
    judge = Picky(Picky.Config(type="picky", level="step"), context=CONTEXT)
    whole = attempt("x", turns=(turn,))
    asked = tuple(
        whole.model_copy(update={"graded": Span(turn=0, start=s.start, end=s.end)}) for s in parts
    )
    judge.judge([JudgeJob(prompt=PROMPT, trajectories=asked, seed=0)])
    assert judge.asked == [["First. ", "First. Then."]]


def test_the_worker_holds_judges_that_ask_and_judges_that_score_side_by_side(
    tmp_path: Path,
) -> None:
    judges = [
        JUDGES.parse({"type": "rubric", "backend": "fake"}),
        JUDGES.parse({"type": "fake_reward", "scale": -0.5}),
    ]
    worker = JudgeWorker([j for j in judges if isinstance(j, Judge.Config)], CONTEXT)
    worker.check()
    assert worker.identities()["fake_reward"] == {"backend": "fake: longer -0.5", "prompt": ""}
    attempts = [attempt(t, name=f"t{i}", sample_index=i) for i, t in enumerate(("ab", "abcd"))]
    paths = {name: tmp_path / f"{name}.parquet" for name in ("prompts", "attempts", "v", "c")}
    write_records(paths["prompts"], Prompt, [PROMPT])
    write_records(paths["attempts"], type(attempts[0]), attempts)
    written = worker.judge(
        str(paths["attempts"]), str(paths["prompts"]), str(paths["v"]), str(paths["c"]), 7
    )
    committed(written)
    verdicts = read_records(paths["v"], Verdict)
    rewards = {v.trajectory_id: v.score for v in verdicts if v.source == "fake_reward"}
    assert rewards == {"t0": -1.0, "t1": -2.0}
    summary: Any = written.summary
    assert summary["fake_reward"]["score_sum"] == -3.0
    assert summary["fake_reward"]["calls"] == 2
    assert {v.raw for v in verdicts if v.source == "rubric"} == {False}


def tiny_reward_model(folder: Path, *, head: bool = True, labels: int = 1) -> PolicyVersion:
    """A sequence classifier of random weights with two layers, and its tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = [
        "<unk>",
        "<end>",
        "user",
        "assistant",
        "Say",
        "something",
        ".",
        "yes",
        "no",
        "never",
        "perhaps",
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' <end> ' }}{% endfor %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=24,
        num_labels=labels,
    )
    made = (LlamaForSequenceClassification if head else LlamaForCausalLM)(config)
    made.save_pretrained(folder)
    return model_as_version(str(folder))


def reward_model(version: PolicyVersion, **settings: Any) -> ScoringJudge:
    config = JUDGES.parse({"type": "reward_model", "model": "rm", "dtype": "float32", **settings})
    context = BackendContext(policy_version=no_version, model_version=lambda name: version)
    judge: ScoringJudge = create(config, context=context)
    judge.start()
    return judge


def test_a_reward_is_what_the_model_itself_says_of_the_chat_alone_and_unpadded(
    tmp_path: Path,
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    version = tiny_reward_model(tmp_path)
    judge = reward_model(version, batch_size=3)
    texts = ("yes", "no never perhaps no", "never .", "perhaps yes yes yes yes no", "yes " * 30)
    attempts = tuple(attempt(text, name=str(i), sample_index=i) for i, text in enumerate(texts))
    (judgement,) = judge.judge([JudgeJob(prompt=PROMPT, trajectories=attempts, seed=0)])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model.eval()
    for text, verdict in zip(texts[:4], judgement.verdicts, strict=False):
        chat = f"user Say something. <end> assistant {text.strip()} <end> "
        ids = torch.tensor([tokenizer(chat)["input_ids"]])
        with torch.no_grad():
            alone = model(input_ids=ids).logits[0, 0].item()
        assert verdict.score == pytest.approx(alone, abs=1e-5)
        assert verdict.raw
    assert len({round(v.score or 0.0, 4) for v in judgement.verdicts[:4]}) == 4
    assert "the reward model reads 24" in (judgement.verdicts[4].error or "")
    assert judge.usage["calls"] == 5
    (squashed,) = reward_model(version, scale="sigmoid").judge(
        [JudgeJob(prompt=PROMPT, trajectories=attempts[:1], seed=0)]
    )
    expected = 1 / (1 + torch.tensor(-(judgement.verdicts[0].score or 0.0)).exp().item())
    assert squashed.verdicts[0].score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("made", "settings", "said"),
    [
        ({"head": False}, {}, "no weights for score.weight: it is no reward model"),
        ({"labels": 3}, {}, "set output to a number from 0 to 2"),
        ({"labels": 1}, {"output": 1}, "set output to a number from 0 to 0"),
    ],
)
def test_what_is_no_reward_model_is_refused_and_never_scored_by_chance(
    tmp_path: Path, made: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    version = tiny_reward_model(tmp_path, **made)
    with pytest.raises(PawlError, match=said):
        reward_model(version, **settings)


def test_a_reward_model_states_its_model_a_gpu_and_that_rewards_are_raw() -> None:
    config = JUDGES.parse({"type": "reward_model", "model": "org/rm", "dtype": "float16"})
    needs = requirements_of(config)
    (model,) = needs.models
    assert (model.name, model.set_by, model.gpus, model.dtype) == ("org/rm", "model", 1, "float16")
    assert needs.raw_scores
    other = JUDGES.parse({"type": "reward_model", "model": "org/rm", "scale": "sigmoid"})
    assert not requirements_of(other).raw_scores
