"""The smallest whole run: scripted engines, arithmetic prompts, one process. What differs is named by the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.config.run_config import RunConfig
from policies.storage.fake_model import write_fake_model


def arithmetic(split: str, *, high: int = 6, held_out: int = 5) -> dict[str, Any]:
    """A prompt source of questions like `3 times 4`."""
    return {"type": "arithmetic", "low": 2, "high": high, "held_out": held_out, "split": split}


def fake_tree(
    root: Path,
    *,
    skill: float = 0.3,
    high: int = 6,
    held_out: int = 5,
    per_round: int = 6,
    samples: int = 4,
    per_shard: int = 3,
    **changes: Any,
) -> dict[str, Any]:
    """A config of two rounds of two shards, as a tree; its model is made in `root / "model"` unless it is there.

    Args:
        root: folder of the test.
        skill: share of right answers of the untrained policy.
        high: largest factor of a question; the more, the more prompts.
        held_out: held-out prompts.
        per_round: prompts of a round.
        samples: attempts at each prompt.
        per_shard: prompts of a shard.
        changes: sections that replace those above.
    """
    model = root / "model"
    if not model.exists():
        write_fake_model(model, skill=skill)
    tree: dict[str, Any] = {
        "rounds": 2,
        "policy": {"model": str(model)},
        "prompts": {
            "train": arithmetic("train", high=high, held_out=held_out),
            "held_out": arithmetic("held_out", high=high, held_out=held_out),
            "per_round": per_round,
        },
        "rollout": {
            "engine": {"type": "fake"},
            "samples_per_prompt": samples,
            "prompts_per_shard": per_shard,
        },
        "verifiers": [{"type": "numeric_match"}],
        "preferences": {"type": "right_vs_wrong"},
        "training": {"engine": {"type": "fake"}},
        "cluster": {"backend": "inline"},
        "acceptance": {"type": "always"},
        "tracking": {"enabled": False},
    }
    return tree | changes


def fake_config(root: Path, **changes: Any) -> RunConfig:
    """`fake_tree`, checked."""
    return RunConfig.model_validate(fake_tree(root, **changes))
