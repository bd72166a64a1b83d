"""One-step updates of a tiny model by the TRL engine, and log-probs of its own logits to check them against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from policies.examples.kinds import Example, TokenSequence
from policies.objectives.reference import ReferencePart, ReferencePlan
from tests.support.training_cases import make_engine, make_job, version
from workers.training.checkpoints.weights import load_model
from workers.training.engine import UpdateOutcome


def load(path: Path) -> Any:
    return load_model(str(path), device="cpu", attention="eager", trust_remote_code=False)


def log_probs(path: Path, sequence: TokenSequence) -> list[float]:
    """Log-prob of every token but the first, from the model's own logits; 0.0 for the first. [T]"""
    ids = torch.tensor([sequence.token_ids])
    with torch.no_grad():
        values = load(path)(ids).logits[0, :-1].log_softmax(-1)
    return [0.0, *values.gather(1, ids[0, 1:, None])[:, 0].tolist()]


def total(values: Sequence[float], mask: Sequence[int]) -> float:
    return math.fsum(v for v, m in zip(values, mask, strict=True) if m)


def run(
    loss: Any, examples: Sequence[Example], folder: Path, policy: Path, **changes: Any
) -> UpdateOutcome:
    """One update of one step over all examples, in `folder`, which is made."""
    folder.mkdir()
    options = {"batch_size": 64, "learning_rate": 1e-3, **changes.pop("options", {})}
    job = make_job(version(policy), folder, **changes)
    outcome = make_engine("trl", loss, **options).update(job, examples)
    assert outcome.num_examples == len(examples)
    return outcome


def against(other: Path) -> dict[str, Any]:
    """A reference that is another model, so that log-ratios are not 0."""
    return {
        "reference": ReferencePlan(parts=(ReferencePart(version=1, weight=1.0),)),
        "reference_versions": (version(other, number=1),),
    }
