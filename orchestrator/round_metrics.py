"""Metrics of a round from the shards' sums: the one place that divides, with no clock in it."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.phases import Collected, Trained
from orchestrator.source_counts import count_sources


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
    """Mean score, errors and agreement of each verifier and judge."""
    found: dict[str, float] = {}
    for each in count_sources(counts):
        prefix = f"{each.stage}/{each.source}"
        if each.scored and each.stage == "verify":
            found[f"{prefix}/score"] = each.score_sum / each.scored
        if each.asked:
            found[f"{prefix}/errors"] = each.errors
            found[f"{prefix}/error_share"] = each.errors / each.asked
        if each.comparisons:
            found[f"{prefix}/comparisons"] = each.comparisons
            found[f"{prefix}/agreement"] = each.agreed / each.comparisons
            found[f"{prefix}/ties"] = each.ties / each.comparisons
            found[f"{prefix}/cache_hits"] = each.cache_hits
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
