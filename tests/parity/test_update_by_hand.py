"""An update is the one of plain PyTorch: warm-up, weight decay, clipping, and references in training's precision."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from policies.examples.kinds import PreferencePair, TokenSequence
from tests.support.step_gradients import OWN
from tests.support.training_cases import (
    log_of,
    make_engine,
    make_job,
    make_loss,
    pairs,
    singles,
    version,
    weights_of,
    write_tiny_model,
)
from workers.training.batches.plan import longest_sides, plan_batches
from workers.training.checkpoints.weights import load_model
from workers.training.engine import TrainingOptions
from workers.training.schedule import rate_factor, warmup_steps

BETA, RATE = 0.5, 1e-3
TOLERANCE = 2e-5
"""Of weights that the updates move by 6e-3: sums in another order."""
PLAIN: dict[str, Any] = {"warmup_fraction": 0.0, "weight_decay": 0.0, "max_grad_norm": 1e9}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def load(path: Path) -> Any:
    return load_model(str(path), device="cpu", attention="eager", trust_remote_code=False)


def log_prob(model: Any, sequence: TokenSequence) -> torch.Tensor:
    """Of the scored tokens, from the model's own logits."""
    ids = torch.tensor([sequence.token_ids])
    logits = model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
    picked = logits.gather(1, ids[0, 1:, None]).squeeze(1)
    total: torch.Tensor = (picked * torch.tensor(sequence.loss_mask[1:])).sum()
    return total


def by_hand(model_dir: Path, options: TrainingOptions, seed: int) -> dict[str, torch.Tensor]:
    """The weights after a DPO update written out in PyTorch."""
    examples = cast("list[PreferencePair]", pairs())
    model = load(model_dir)
    with torch.no_grad():
        start = [(log_prob(model, p.chosen), log_prob(model, p.rejected)) for p in examples]
    plan = plan_batches(
        longest_sides(examples),
        batch_size=options.batch_size,
        micro_batch_size=None,
        epochs=options.epochs,
        seed=seed,
    )
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    for number, rows in enumerate(plan.step_rows):
        margins = []
        for row in rows:
            pair, (chosen, rejected) = examples[row], start[row]
            margins.append(
                log_prob(model, pair.chosen) - chosen - log_prob(model, pair.rejected) + rejected
            )
        loss = -torch.nn.functional.logsigmoid(BETA * torch.stack(margins)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate_factor(options, plan.num_steps, number)
        optimizer.step()
        optimizer.zero_grad()
    return {n: p.detach() for n, p in model.named_parameters()}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[n] - other[n]).abs().max()) for n in one)


@pytest.mark.parametrize(
    "wanted", [{"warmup_fraction": 0.5}, {"weight_decay": 1.0}, {"max_grad_norm": 0.02}]
)
def test_the_update_is_the_one_of_plain_pytorch_and_not_the_one_without_the_option(
    wanted: dict[str, float], model_dir: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"learning_rate": RATE, "epochs": 2, "batch_size": 4, **PLAIN}
    job = make_job(version(model_dir), tmp_path)
    engine = make_engine("trl", make_loss("dpo", beta=BETA), **{**settings, **wanted})
    engine.update(job, pairs())
    made = weights_of(job.output_dir)
    right = by_hand(model_dir, engine.options, job.seed)
    without = by_hand(model_dir, TrainingOptions(**settings), job.seed)
    assert apart(right, made) < TOLERANCE
    assert apart(without, made) > 10 * TOLERANCE, "the option changes what is learned"


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_first_and_the_last_step_of_a_round_teach(
    schedule: str, model_dir: Path, tmp_path: Path
) -> None:
    engine = make_engine(
        "trl", make_loss("dpo"), schedule=schedule, learning_rate=RATE, epochs=2, batch_size=4
    )
    job = make_job(version(model_dir), tmp_path)
    engine.update(job, pairs())
    rates = [row["train/learning_rate"] for row in log_of(job)]
    factors = [rate_factor(engine.options, 6, step) for step in range(6)]
    assert rates == pytest.approx([RATE * f for f in factors])
    assert rates[:4] == pytest.approx([RATE / 4, RATE / 2, RATE * 3 / 4, RATE])
    assert min(rates) > 0


def test_without_settings_every_round_warms_up_and_learns_at_the_full_rate() -> None:
    default = TrainingOptions()
    lengths = {n: warmup_steps(default, n) for n in (1, 2, 3, 5, 6, 10, 30, 40, 200)}
    assert lengths == {1: 0, 2: 1, 3: 1, 5: 2, 6: 3, 10: 3, 30: 3, 40: 4, 200: 20}
    for steps in range(1, 60):
        factors = [rate_factor(default, steps, step) for step in range(steps)]
        assert factors[-1] == 1.0
        assert 0 < factors[0] <= 1
        assert factors == sorted(factors)


def test_a_fraction_of_0_turns_the_warm_up_off_and_a_long_one_is_kept() -> None:
    assert warmup_steps(TrainingOptions(warmup_fraction=0.0), 10) == 0
    assert warmup_steps(TrainingOptions(warmup_fraction=0.8), 10) == 8
    assert warmup_steps(TrainingOptions(warmup_min_steps=0), 10) == 1


def test_the_reference_is_scored_in_the_precision_of_training(
    model_dir: Path, tmp_path: Path
) -> None:
    """In bfloat16 policy and reference round alike; a reference in float32 is a tenth of a nat away."""
    rewards = {}
    for precision in ("bf16", "fp32"):
        folder = tmp_path / precision
        folder.mkdir()
        loss = make_loss("dpo", beta=1.0)
        job = make_job(version(model_dir), folder)
        make_engine("trl", loss, precision=precision, batch_size=10).update(job, pairs())
        rewards[precision] = log_of(job)[0]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert abs(rewards["bf16"][name]) < 1e-3, name
    rounding = abs(rewards["bf16"]["logps/chosen"] - rewards["fp32"]["logps/chosen"])
    assert rounding > 5e-3, "else a reference in another precision would look the same"


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_a_thousandfold_hinge_is_a_thousandfold_hinge(
    weight: float, model_dir: Path, tmp_path: Path
) -> None:
    """At the reference each pair's hinge is 1, and the gradient is a thousand times the plain one."""
    first = {}
    for name in ("hinge", f"{OWN}:ThousandHinge"):
        folder = tmp_path / name.rpartition(":")[2]
        folder.mkdir()
        job = make_job(version(model_dir), folder)
        engine = make_engine("trl", make_loss(name), batch_size=10)
        engine.update(job, pairs(weight=weight))
        first[name.rpartition(":")[2]] = log_of(job)[0]
    plain, thousand = first["hinge"], first["ThousandHinge"]
    assert plain["train/loss"] == pytest.approx(weight, rel=1e-4)
    assert thousand["train/loss"] == pytest.approx(1000 * weight, rel=1e-4)
    assert thousand["train/grad_norm"] == pytest.approx(1000 * plain["train/grad_norm"], rel=1e-4)


def test_reward_and_reference_point_of_kto_come_from_the_same_reference(
    model_dir: Path, tmp_path: Path
) -> None:
    """The sampler's log-probs (-4 for every token here) are not compared with z0's, which are the trainer's."""
    job = make_job(version(model_dir), tmp_path, logprobs="rollout")
    outcome = make_engine("trl", make_loss("kto"), batch_size=12).update(job, singles())
    assert outcome.metrics["kl"] == pytest.approx(0.0, abs=1e-4)
    for side in ("chosen", "rejected"):
        assert outcome.metrics[f"rewards/{side}"] == pytest.approx(0.0, abs=1e-4)
    assert outcome.metrics["health/logprob_gap"] > 0.1, "the sampler's are compared all the same"
    assert math.isfinite(outcome.metrics["train/loss"])
