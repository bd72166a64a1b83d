"""Does the shipped loop learn? Runs the quickstarts with several seeds, and the coin flip, through the command.

    python benchmarks/learning.py [--seeds 0 1 2] [--only dpo kto coin] [--runs-dir DIR] [--table]

Appends to `benchmarks/learning.csv`; `benchmarks/learning.md` holds the tables made of it.
"""

from __future__ import annotations

from pathlib import Path

from experiment import Experiment, by_round, change, markdown

HERE = Path(__file__).parent
COIN = f"[{{type: '{HERE / 'coin_flip.py'}:score', name: coin}}]"
LEARNING = Experiment(
    arms={
        "dpo": ["quickstart"],
        "kto": ["quickstart-kto"],
        "coin": [
            "quickstart",
            f"verifiers={COIN}",
            "acceptance={type: always}",
            "evaluation.verifiers=[{type: numeric_match}]",
        ],
    },
    metrics={
        "pass@1": "eval/pass@1",
        "pass@8": "eval/pass@8",
        "length": "eval/length_tokens",
        "entropy": "eval/entropy",
        "examples": "prefer/examples",
    },
    path=HERE / "learning.csv",
)


def table() -> str:
    """Held-out pass@1 by round, a row per run."""
    runs = LEARNING.runs()
    last = max((int(rows[-1]["round"]) for _, _, rows in runs), default=0)
    header = ["arm", "seed", "base", *(f"round {r}" for r in range(1, last + 1))]
    body = [
        [
            arm,
            seed,
            *by_round(rows, "pass@1", last),
            change(rows, "pass@8"),
            change(rows, "length", 0),
            str(sum(int(r["seconds"]) for r in rows)),
        ]
        for arm, seed, rows in runs
    ]
    return markdown([*header, "pass@8", "tokens", "seconds"], body)


if __name__ == "__main__":
    LEARNING.main(__doc__ or "", table)
