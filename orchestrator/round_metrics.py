"""Metrics of a round from the shards' sums: the one place that divides, with no clock in it."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.phases import Collected, Trained


def collection_metrics(collected: Collected) -> dict[str, float]:
    """`rollout/...`, `verify/...`, `judge/...` and `prefer/...` of a round."""
    counts = collected.counts
    trajectories = max(counts.get("rollout/trajectories", 0.0), 1.0)
    tokens = max(counts.get("rollout/tokens", 0.0), 1.0)
    found = {
        "rollout/trajectories": counts.get("rollout/trajectories", 0.0),
        "rollout/tokens": counts.get("rollout/tokens", 0.0),
        "rollout/length_tokens": counts.get("rollout/tokens", 0.0) / trajectories,
        "rollout/truncated_share": counts.get("rollout/truncated", 0.0) / trajectories,
        "rollout/error_share": counts.get("rollout/errors", 0.0) / trajectories,
        "rollout/entropy": counts.get("rollout/negative_logprob", 0.0) / tokens,
    }
    found |= _by_source(counts)
    found["prefer/examples"] = float(collected.num_examples)
    prompts = counts.get("prefer/prompts", 0.0)
    if prompts:
        for name in ("all_right", "all_wrong", "with_example"):
            found[f"prefer/{name}_share"] = counts.get(f"prefer/prompts_{name}", 0.0) / prompts
    for reason, number in collected.dropped.items():
        found[f"prefer/dropped/{reason}"] = float(number)
    return found


def _by_source(counts: Mapping[str, float]) -> dict[str, float]:
    """Mean score and error share of each verifier and judge."""
    found: dict[str, float] = {}
    for stage in ("verify", "judge"):
        sources = sorted({name.split("/")[2] for name in counts if name.startswith(f"{stage}/sources/")})
        for source in sources:
            prefix = f"{stage}/sources/{source}"
            scored = counts.get(f"{prefix}/scored", 0.0)
            asked = scored + counts.get(f"{prefix}/abstained", 0.0) + counts.get(f"{prefix}/errors", 0.0)
            if scored:
                found[f"{stage}/{source}/score"] = counts.get(f"{prefix}/score_sum", 0.0) / scored
            if asked:
                found[f"{stage}/{source}/errors"] = counts.get(f"{prefix}/errors", 0.0)
                found[f"{stage}/{source}/error_share"] = counts.get(f"{prefix}/errors", 0.0) / asked
            compared = counts.get(f"{prefix}/comparisons", 0.0)
            if compared:
                found[f"{stage}/{source}/agreement"] = counts.get(f"{prefix}/agreed", 0.0) / compared
                found[f"{stage}/{source}/ties"] = counts.get(f"{prefix}/ties", 0.0) / compared
    return found


def training_metrics(trained: Trained) -> dict[str, float]:
    """`train/...`, `rewards/...` and the like, as the trainer named them, and what it dropped."""
    if trained.outcome is None:
        return {}
    outcome = trained.outcome
    found = dict(outcome.metrics)
    found["train/examples"] = float(outcome.num_examples)
    found["train/steps"] = float(outcome.num_steps)
    found["train/tokens"] = float(outcome.num_tokens)
    for reason, number in outcome.dropped.items():
        found[f"train/dropped/{reason}"] = float(number)
    return found
