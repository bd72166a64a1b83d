"""The engine through TRL's real trainers on a tiny model: TRL's numbers from our masks, and the hooks it stands on."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers
import trl
from trl import DPOTrainer, KTOTrainer
from trl.trainer.utils import add_fused_lm_head

from policies.base.errors import DivergenceError, TrainingError
from policies.examples.kinds import PreferencePair
from policies.objectives.logprobs import padded, sequence_logprobs, token_scores
from policies.objectives.reference import ReferencePart, ReferencePlan
from tests.support.training_cases import (
    log_of,
    make_engine,
    make_job,
    make_loss,
    pairs,
    sequence,
    singles,
    version,
    weights_of,
    write_tiny_model,
)
from workers.training.checkpoints.weights import load_model
from workers.training.distributed.process_group import WorkerGroup
from workers.training.engine import AdapterSettings
from workers.training.engines.trl import score_with_ours
from workers.training.step_log import StepLog
from workers.training.trl_parts.resumable import ResumableSteps

OWN_LOSSES = Path(__file__).parents[1] / "support" / "own_losses.py"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def load(path: Path, attention: str = "eager") -> Any:
    return load_model(str(path), device="cpu", attention=attention, trust_remote_code=False)


@pytest.mark.parametrize(
    ("hook", "parameters"),
    [
        ("_prepare_dataset", ["self", "dataset", "processing_class", "args", "dataset_name"]),
        ("_precompute_ref_logps", ["self", "dataset", "name", "batch_size"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("_send_telemetry", ["self"]),
        ("get_train_dataloader", ["self"]),
        ("create_optimizer", ["self", "model"]),
        ("create_scheduler", ["self", "num_training_steps", "optimizer"]),
        ("get_batch_samples", ["self", "epoch_iterator", "num_batches", "device"]),
        ("_get_grad_norm", ["self", "model", "grad_norm"]),
        ("log", ["self", "logs", "start_time"]),
    ],
)
def test_the_private_hooks_that_we_replace_are_as_they_were_in_trl_1_16(
    hook: str, parameters: list[str]
) -> None:
    for trainer in (DPOTrainer, KTOTrainer):
        found = list(inspect.signature(getattr(trainer, hook)).parameters)
        versions = f"trl {trl.__version__}, transformers {transformers.__version__}"
        assert found == parameters, (
            f"{trainer.__name__}.{hook} changed ({versions}): read it, then adapt steps.py"
        )


def test_our_scores_equal_those_of_trls_fused_head(model_dir: Path) -> None:
    sequences = [sequence("a", 0), sequence("b", 1, length=12), sequence("c", 2)]
    ids, attention, mask = padded(sequences)
    labels = ids.masked_fill(mask == 0, -100)
    ours, theirs = load(model_dir), load(model_dir)
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
    add_fused_lm_head(theirs, outputs=outputs)
    score_with_ours(ours, sum_squares=True)
    batch = {"input_ids": ids, "attention_mask": attention, "labels": labels, "fused_lm_head": True}
    a, b = ours(**batch), theirs(**batch)
    for name in outputs:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, a.log_probs.numel()).view_as(a.log_probs)
    (a.log_probs * weights).sum().backward()
    (b.log_probs * weights).sum().backward()
    for (name, mine), (_, other) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_probabilities_made_again_give_the_gradient_of_those_kept(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    ids, attention, mask = padded([sequence("a", 0), sequence("b", 1)])
    for limit, block in ((1 << 30, 1 << 25), (0, 200)):
        monkeypatch.setattr("policies.objectives.logprobs._SAVED_BYTES", limit)
        monkeypatch.setattr("policies.objectives.logprobs._BLOCK_ELEMENTS", block)
        model = load(model_dir)
        token_scores(model, ids, attention, mask, statistics=True).sums.sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-4, atol=1e-6)


def test_log_probs_do_not_depend_on_batch_padding_or_order(model_dir: Path) -> None:
    model = load(model_dir)
    sequences = [sequence(f"p{i}", i, length=4 + i) for i in range(6)]
    together = sequence_logprobs(model, sequences).per_token
    alone = sequence_logprobs(model, sequences[::-1], tokens_per_batch=1).per_token[::-1]
    for a, b, s in zip(together, alone, sequences, strict=True):
        assert len(a) == sum(s.loss_mask)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "first"), [("dpo", math.log(2)), ("ipo", 25.0), ("sppo_hard", 50.0), ("kto", 0.5)]
)
def test_with_the_policy_as_reference_the_first_loss_is_the_neutral_one(
    name: str, first: float, model_dir: Path, tmp_path: Path
) -> None:
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0} if name == "kto" else {}
    examples = singles() if name == "kto" else pairs()
    outcome = make_engine("trl", make_loss(name, **weights)).update(
        make_job(version(model_dir), tmp_path), examples
    )
    assert outcome.metrics["train/loss_first"] == pytest.approx(first, rel=1e-4, abs=1e-3)


def test_the_custom_step_trains_as_trls_own_step_does(model_dir: Path, tmp_path: Path) -> None:
    """A weight of 2 on every pair doubles the loss, so halving it back must give TRL's own run."""
    runs = {}
    for label, weight in (("trl", 1.0), ("own", 2.0)):
        (tmp_path / label).mkdir()
        job = make_job(version(model_dir), tmp_path / label)
        engine = make_engine(
            "trl", make_loss("dpo", beta=0.5), learning_rate=1e-3, micro_batch_size=2
        )
        engine.update(job, pairs(weight=weight))
        runs[label] = log_of(job)
    for mine, theirs in zip(runs["own"], runs["trl"], strict=True):
        assert mine["train/loss"] == pytest.approx(2 * theirs["train/loss"], rel=1e-3)
        for name in ("rewards/margins", "logps/chosen", "rewards/accuracies", "train/entropy"):
            assert mine[name] == pytest.approx(theirs[name], rel=2e-2, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dpo", {"nll_coefficient": 1.0, "label_smoothing": 0.1}),
        ("dpo", {"use_weighting": True, "ld_alpha": 0.5}),
        ("dpo", {"f_divergence": "forward_kl"}),
        ("discopop", {}),
        ("sft_chosen", {}),
        ("kto", {"kl_share": 0.3}),
        ("apo_zero_unpaired", {}),
    ],
)
def test_losses_of_all_sorts_train(
    name: str, settings: dict[str, Any], model_dir: Path, tmp_path: Path
) -> None:
    loss = make_loss(name, **settings)
    examples = pairs(6) if loss.kind_name == "pair" else singles(weight=0.5)
    job = make_job(version(model_dir), tmp_path)
    outcome = make_engine("trl", loss, learning_rate=1e-3).update(job, examples)
    assert all(math.isfinite(value) for value in outcome.metrics.values())
    before, after = weights_of(model_dir), weights_of(job.output_dir)
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("micro", [1, 3, 6])
def test_the_microbatch_size_does_not_change_the_update(
    micro: int, model_dir: Path, tmp_path: Path
) -> None:
    engine = make_engine(
        "trl", make_loss("dpo"), batch_size=6, micro_batch_size=micro, learning_rate=1e-3
    )
    job = make_job(version(model_dir), tmp_path)
    engine.update(job, pairs(11))
    whole = make_job(
        version(model_dir),
        tmp_path,
        output_dir=str(tmp_path / "whole"),
        log_path=str(tmp_path / "w"),
    )
    make_engine("trl", make_loss("dpo"), batch_size=6, learning_rate=1e-3).update(whole, pairs(11))
    losses = [step["train/loss"] for step in log_of(job)]
    assert losses == pytest.approx([step["train/loss"] for step in log_of(whole)], abs=2e-4)


def test_lora_publishes_full_merged_weights_under_the_checkpoints_names(
    model_dir: Path, tmp_path: Path
) -> None:
    job = make_job(version(model_dir), tmp_path)
    engine = make_engine(
        "trl", make_loss("dpo"), adapter=AdapterSettings(rank=2), learning_rate=1e-2
    )
    outcome = engine.update(job, pairs())
    before, after = weights_of(model_dir), weights_of(job.output_dir)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed), (
        "only adapted layers move"
    )
    assert outcome.metrics["train/loss_first"] == pytest.approx(math.log(2), abs=1e-4)
    assert (Path(job.output_dir) / "adapter" / "adapter_model.safetensors").is_file()


def test_a_reference_of_several_versions_is_their_weighted_average(
    model_dir: Path, tmp_path: Path
) -> None:
    other = write_tiny_model(tmp_path / "other", seed=5)
    plan = ReferencePlan(
        parts=(ReferencePart(version=0, weight=0.25), ReferencePart(version=1, weight=0.75))
    )
    averaged = load(model_dir)
    mine, others = weights_of(model_dir), weights_of(other)
    averaged.load_state_dict({n: 0.25 * mine[n] + 0.75 * others[n] for n in mine}, strict=False)
    versions = (version(model_dir), version(other, number=1))
    job = make_job(version(model_dir), tmp_path, reference=plan, reference_versions=versions)
    examples = cast("list[PreferencePair]", pairs(4))
    outcome = make_engine("trl", make_loss("dpo")).update(job, examples)
    policy = load(model_dir)
    ratios = [
        ours - theirs
        for ours, theirs in zip(
            sequence_logprobs(policy, [p.chosen for p in examples]).sums,
            sequence_logprobs(averaged, [p.chosen for p in examples]).sums,
            strict=True,
        )
    ]
    assert outcome.metrics["rewards/chosen"] == pytest.approx(0.1 * sum(ratios) / 4, abs=1e-3)


def test_the_gap_to_the_sampler_is_measured_in_nats_per_token(
    model_dir: Path, tmp_path: Path
) -> None:
    model = load(model_dir)
    exact = []
    for pair in cast("list[PreferencePair]", pairs()):
        sides = {}
        for side in ("chosen", "rejected"):
            seq = getattr(pair, side)
            values = iter(sequence_logprobs(model, [seq]).per_token[0].tolist())
            shifted = tuple(next(values) + 0.25 if m else 0.0 for m in seq.loss_mask)
            sides[side] = seq.model_copy(update={"logprobs": shifted})
        exact.append(pair.model_copy(update=sides))
    job = make_job(version(model_dir), tmp_path, logprobs="rollout")
    outcome = make_engine("trl", make_loss("dpo")).update(job, exact)
    assert outcome.metrics["health/logprob_gap"] == pytest.approx(0.25, abs=1e-3)
    assert outcome.metrics["health/logprob_gap_max"] == pytest.approx(0.25, abs=1e-3)


def test_a_carried_optimizer_goes_on_from_its_moments(model_dir: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    engine = make_engine("trl", make_loss("dpo"), optimizer="carry", learning_rate=1e-3)
    first = make_job(version(model_dir), tmp_path, optimizer_output=str(state))
    engine.update(first, pairs())
    start = version(Path(first.output_dir), number=1)
    ends = []
    for name, carried in (("fresh", None), ("carried", str(state))):
        (tmp_path / name).mkdir()
        job = make_job(start, tmp_path / name, optimizer_state=carried)
        engine.update(job, pairs())
        ends.append(weights_of(job.output_dir)["model.norm.weight"])
    assert not torch.equal(ends[0], ends[1])
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(state.read_bytes()[:100])
    (tmp_path / "bad").mkdir()
    with pytest.raises(TrainingError, match=r"training\.optimizer"):
        engine.update(make_job(start, tmp_path / "bad", optimizer_state=str(damaged)), pairs())


def test_an_update_that_diverges_names_the_step_and_leaves_nothing(
    model_dir: Path, tmp_path: Path
) -> None:
    engine = make_engine("trl", make_loss(f"{OWN_LOSSES}:BreaksAway"), learning_rate=0.01)
    job = make_job(version(model_dir), tmp_path)
    with pytest.raises(DivergenceError, match=r"at step [23]"):
        engine.update(job, pairs())
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("new")]
    assert all(math.isfinite(row["train/loss"]) for row in log_of(job))


@pytest.mark.parametrize(
    ("loss", "norm", "refused"),
    [
        (0.7, 1.0, None),
        (math.nan, 1.0, "train/loss"),
        (-math.inf, 1.0, "train/loss"),
        (0.7, math.inf, "train/grad_norm"),
        (0.7, math.nan, "train/grad_norm"),
    ],
)
def test_what_is_not_finite_is_refused_before_the_optimizer_steps(
    loss: float, norm: float, refused: str | None, tmp_path: Path
) -> None:
    class Measured:
        """What the trainer knows of a step when it asks for the gradient norm."""

        _tr_loss = torch.tensor(loss)

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            return grad_norm

    class Guarded(ResumableSteps, Measured):
        pawl = cast(Any, SimpleNamespace(log=StepLog(tmp_path / "log"), group=WorkerGroup()))

    order = inspect.getsource(transformers.Trainer._run_epoch)
    assert order.index("_get_grad_norm(") < order.index("self.optimizer.step()")
    if refused is None:
        assert Guarded()._get_grad_norm(None, torch.tensor(norm)) == norm
        return
    with pytest.raises(DivergenceError, match=f"{refused} is not finite at step 1"):
        Guarded()._get_grad_norm(None, torch.tensor(norm))


def test_training_raises_the_chosen_side_and_says_so(model_dir: Path, tmp_path: Path) -> None:
    engine = make_engine("trl", make_loss("dpo", beta=0.5), learning_rate=5e-3, epochs=4)
    outcome = engine.update(make_job(version(model_dir), tmp_path), pairs())
    assert outcome.num_steps == 12
    assert outcome.metrics["train/loss"] < 0.6
    assert outcome.metrics["rewards/margins"] > 0.2


def test_nothing_is_written_to_the_console(
    model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = make_engine("trl", make_loss("kto")).update(
        make_job(version(model_dir), tmp_path), singles()
    )
    assert outcome.num_steps == 3
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
