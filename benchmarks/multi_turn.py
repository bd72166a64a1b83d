"""Multi-turn learning with a tool: the recipe as M-DPO and M-KTO, and what the mask is worth when the tool fails.

    python benchmarks/multi_turn.py [--seeds 0 1 2] [--only m-dpo ...] [--runs-dir DIR] [--table]

The `flaky-*` arms are experiment E4: the interpreter fails 30 % of its calls, and a trajectory has up to four turns, so
more than 0.7 is only to be had by calling again after a failure. "No training" is round 0 of any arm.
Appends to `benchmarks/multi_turn.csv`.
"""

from __future__ import annotations

from pathlib import Path

from experiment import Experiment, by_round, change, markdown

FLAKY = [
    "rollout.strategy.tools=[{type: flaky, failure_rate: 0.3, tool: {type: python, timeout_seconds: 5}}]",
    # A block that the token budget cut behind its closing fence is run all the same.
    "rollout.strategy.cut_turns=answer",
    "rollout.mixture=[]",
    "rollout.samples_per_prompt=8",
    # Twelve runs on two cores: few prompts, small batches, and an adapter, which costs half of full fine-tuning.
    "prompts.per_round=16",
    "policy.adapter={rank: 16, alpha: 32}",
    "training.learning_rate=2.0e-4",
    "training.batch_size=4",
    "evaluation.samples_per_prompt=4",
    # A failed call is what this experiment is about: winners that recovered from one are kept.
    "preferences.drop_failed_calls=no",
]
PAIRS = "preferences.pairs_per_prompt=2"
RECIPE, KTO = "recipes/mt-iter-pref", "recipes/mt-iter-pref-kto"
MULTI_TURN = Experiment(
    arms={
        "m-dpo": [RECIPE],
        "m-kto": [KTO],
        "flaky-sft": [
            RECIPE,
            *(s for s in FLAKY if not s.startswith("preferences.")),
            "preferences={type: imitate, max_per_prompt: 2, max_tokens: 256}",
            "training.loss={type: sft}",
        ],
        "flaky-m-dpo": [RECIPE, *FLAKY, PAIRS],
        "flaky-m-dpo-unmasked": [
            RECIPE,
            *FLAKY,
            PAIRS,
            "training.loss_mask=completion",
            "training.reference.logprobs=recompute",
        ],
        "flaky-m-kto": [KTO, *FLAKY, "preferences.max_per_class=2"],
    },
    metrics={
        "pass@1": "eval/pass@1",
        "pass@4": "eval/pass@4",
        "tool_calls": "eval/tool_calls",
        "failed_calls": "eval/tool_calls/failed",
        "turns": "eval/turns",
        "truncated": "eval/truncated_share",
        "loss": "train/loss",
        "examples": "prefer/examples",
    },
    path=Path(__file__).parent / "multi_turn.csv",
)


def table() -> str:
    """Held-out pass@1 by round and tool calls per trajectory, a row per run."""
    runs = MULTI_TURN.runs()
    last = max((int(rows[-1]["round"]) for _, _, rows in runs), default=0)
    header = ["arm", "seed", "base", *(f"round {r}" for r in range(1, last + 1))]
    body = [
        [
            arm,
            seed,
            *by_round(rows, "pass@1", last),
            change(rows, "tool_calls"),
            rows[-1]["loss"],
            str(sum(int(r["seconds"]) for r in rows)),
        ]
        for arm, seed, rows in runs
    ]
    return markdown([*header, "tool calls", "last loss", "seconds"], body)


if __name__ == "__main__":
    MULTI_TURN.main(__doc__ or "", table)
