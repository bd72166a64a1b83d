"""Metrics of a round from the shards' sums: the one place that divides, with no clock in it."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.rounds.example_metrics import example_metrics
from orchestrator.rounds.source_counts import count_sources
from orchestrator.runs.phases import Collected, Trained
from policies.base.records import Ending


def collection_metrics(collected: Collected) -> dict[str, float]:
    """`rollout/...`, `verify/...`, `judge/...` and `prefer/...` of a round.

    `rollout/length_tokens`, `rollout/turns` and `rollout/tool_calls` are per trajectory and count what the policy
    wrote; `rollout/tool_calls/<status>` is there for the statuses that occurred, `rollout/ended/<ending>` (a share of
    the trajectories) for every ending, `rollout/outcome` where an environment scored episodes, and
    `rollout/author/<who>_share` where others than the policy wrote attempts (`log`, `edit`),
    `rollout/previous_policy_share` where earlier policies sampled too, `rollout/quarantined` where prompts were left
    out because they killed their worker. `prefer/steps` and `prefer/steps_right_share`
    are there where steps were graded, `prefer/spread` (how far apart the sources are) where two scored an attempt.
    """
    counts = collected.counts
    trajectories = max(counts.get("rollout/trajectories", 0.0), 1.0)
    foreign = counts.get("rollout/unscored_tokens", 0.0)
    found = {
        "rollout/trajectories": counts.get("rollout/trajectories", 0.0),
        "rollout/tokens": counts.get("rollout/tokens", 0.0),
        "rollout/length_tokens": counts.get("rollout/tokens", 0.0) / trajectories,
        "rollout/truncated_share": counts.get("rollout/truncated", 0.0) / trajectories,
        "rollout/error_share": counts.get("rollout/errors", 0.0) / trajectories,
        "rollout/entropy": counts.get("rollout/negative_logprob", 0.0)
        / max(counts.get("rollout/tokens", 0.0) - foreign, 1.0),
    }
    if quarantined := counts.get("rollout/quarantined"):
        found["rollout/quarantined"] = quarantined
    found |= conversation_metrics(counts, "rollout")
    for ending in Ending:
        ended = counts.get(f"rollout/endings/{ending.value}", 0.0)
        found[f"rollout/ended/{ending.value}"] = ended / trajectories
    for author, number in _under(counts, "rollout/authors/").items():
        found[f"rollout/author/{author}_share"] = number / trajectories
    by_version = _under(counts, "rollout/versions/")
    if len(by_version) > 1:
        serving = max(
            by_version, key=int
        )  # versions are numbered by round: an earlier policy has a lower number
        found["rollout/previous_policy_share"] = 1.0 - by_version[serving] / trajectories
    found |= _by_source(counts)
    found |= _step_metrics(counts, "prefer")
    found["prefer/examples"] = float(collected.num_examples)
    prompts = counts.get("prefer/prompts", 0.0)
    if prompts:
        for name in ("all_right", "all_wrong", "with_example"):
            found[f"prefer/{name}_share"] = counts.get(f"prefer/prompts_{name}", 0.0) / prompts
    if compared := counts.get("prefer/spreads", 0.0):
        found["prefer/spread"] = counts["prefer/spread_sum"] / compared
    found |= example_metrics(counts)
    found |= collected.measured
    for reason, number in collected.dropped.items():
        found[f"prefer/dropped/{reason}"] = float(number)
    return found


def conversation_metrics(counts: Mapping[str, float], prefix: str) -> dict[str, float]:
    """`<prefix>/turns`, `<prefix>/tool_calls`, each of its statuses that occurred, and `<prefix>/outcome`.

    Turns are the policy's; calls are per trajectory; the outcome is the mean over the episodes that have one.

    Args:
        counts: sums over the rollout stage's summaries, named `rollout/...`.
        prefix: `rollout` or `eval`.
    """
    trajectories = max(counts.get("rollout/trajectories", 0.0), 1.0)
    calls = _under(counts, "rollout/tool_calls/")
    found = {
        f"{prefix}/turns": counts.get("rollout/turns", 0.0) / trajectories,
        f"{prefix}/tool_calls": sum(calls.values()) / trajectories,
    }
    for status, number in calls.items():
        found[f"{prefix}/tool_calls/{status}"] = number / trajectories
    if episodes := counts.get("rollout/outcomes", 0.0):
        found[f"{prefix}/outcome"] = counts["rollout/outcome_sum"] / episodes
    return found


def _under(counts: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {k.removeprefix(prefix): v for k, v in counts.items() if k.startswith(prefix)}


def _step_metrics(counts: Mapping[str, float], stage: str) -> dict[str, float]:
    """`<stage>/steps` and the share of them that are right, where steps were graded."""
    steps = counts.get(f"{stage}/steps", 0.0)
    if not steps:
        return {}
    return {
        f"{stage}/steps": steps,
        f"{stage}/steps_right_share": counts.get(f"{stage}/steps_desirable", 0.0) / steps,
    }


def _by_source(counts: Mapping[str, float]) -> dict[str, float]:
    """Mean score, errors, abstentions and agreement of each verifier and judge; calls and tokens of each judge.

    A pairwise judge scores attempts against each other: its mean score is near 0.5 whatever the policy.
    """
    found: dict[str, float] = {}
    for each in count_sources(counts):
        prefix = f"{each.stage}/{each.source}"
        if each.scored:
            found[f"{prefix}/score"] = each.score_sum / each.scored
        if each.asked:
            found[f"{prefix}/errors"] = each.errors
            found[f"{prefix}/error_share"] = each.errors / each.asked
            found[f"{prefix}/abstain_share"] = each.abstained / each.asked
        if each.stage == "judge":
            found[f"{prefix}/calls"] = each.calls
            found[f"{prefix}/cache_hits"] = each.cache_hits
            found[f"{prefix}/prompt_tokens"] = each.prompt_tokens
            found[f"{prefix}/completion_tokens"] = each.completion_tokens
        if each.uncounted:
            found[f"{prefix}/calls_without_token_count"] = each.uncounted
        if each.inconsistent:
            found[f"{prefix}/fickle_shards"] = each.inconsistent
        for name, mean in each.metrics.items():
            found[f"{prefix}/metrics/{name}"] = mean
        if each.comparisons:
            found[f"{prefix}/comparisons"] = each.comparisons
        # Comparisons that needed no call (equal or empty texts) say nothing of the judge.
        if answered := each.agreed + each.disagreed:
            found[f"{prefix}/agreement"] = each.agreed / answered
            found[f"{prefix}/ties"] = each.ties / answered
            found[f"{prefix}/preferred_first"] = each.preferred_first / answered
    return found


def training_metrics(index: int, trained: Trained) -> dict[str, float]:
    """`train/...`, `rewards/...` and the like of round `index`, as the trainer named them, and what it dropped.

    `train/replayed_examples`, `train/replayed_share` (of the update) and `train/replayed_age` (their mean age in
    rounds) are there where `training.replay` brought examples.
    """
    if trained.outcome is None:
        return {}
    outcome = trained.outcome
    found = dict(outcome.metrics)
    found["train/examples"] = float(outcome.num_examples)
    found["train/steps"] = float(outcome.num_steps)
    found["train/tokens"] = float(outcome.num_tokens)
    if trained.reused:
        found["train/reused_examples"] = float(trained.num_reused)
    found |= _replay_metrics(index, trained)
    for reason, number in outcome.dropped.items():
        found[f"train/dropped/{reason}"] = float(number)
    return found


def _replay_metrics(index: int, trained: Trained) -> dict[str, float]:
    number = sum(part.num_examples for part in trained.replayed)
    if not number or trained.outcome is None:
        return {}
    seen = trained.outcome.num_examples + sum(trained.outcome.dropped.values())
    ages = sum(part.num_examples * (index - part.round) for part in trained.replayed)
    return {
        "train/replayed_examples": float(number),
        "train/replayed_share": number / seen,
        "train/replayed_age": ages / number,
    }
