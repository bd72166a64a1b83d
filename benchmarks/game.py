"""Does a policy get better at a game? Runs the Nim recipe with several seeds, and a control, through the command.

    python benchmarks/game.py [--seeds 0 1 2] [--only kto coin] [--runs-dir DIR] [--table]

`coin` is the recipe with `coin_flip.py` as its only verifier; its held-out games are still scored by who won.
Appends to `benchmarks/game.csv`; `benchmarks/game.md` holds the tables made of it.
"""

from __future__ import annotations

from pathlib import Path

from experiment import Experiment, by_round, change, markdown

HERE = Path(__file__).parent
RECIPE = "recipes/nim-kto"
COIN = f"[{{type: '{HERE / 'coin_flip.py'}:score', name: coin}}]"
GAME = Experiment(
    arms={
        "kto": [RECIPE],
        "coin": [RECIPE, f"verifiers={COIN}", "evaluation.verifiers=[{type: outcome}]"],
    },
    metrics={
        "win rate": "eval/pass@1",
        "win rate while sampling": "rollout/outcome",
        "turns": "eval/turns",
        "length": "eval/length_tokens",
        "entropy": "eval/entropy",
        "examples": "prefer/examples",
    },
    path=HERE / "game.csv",
)


def table() -> str:
    """Held-out win rate by round, a row per run."""
    runs = GAME.runs()
    last = max((int(rows[-1]["round"]) for _, _, rows in runs), default=0)
    header = ["arm", "seed", "base", *(f"round {r}" for r in range(1, last + 1))]
    body = [
        [
            arm,
            seed,
            *by_round(rows, "win rate", last),
            change(rows, "turns"),
            change(rows, "length", 0),
            str(sum(int(r["seconds"]) for r in rows)),
        ]
        for arm, seed, rows in runs
    ]
    return markdown([*header, "turns", "tokens", "seconds"], body)


if __name__ == "__main__":
    GAME.main(__doc__ or "", table)
