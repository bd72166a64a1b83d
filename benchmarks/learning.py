"""Does the shipped loop learn? Runs the quickstarts with several seeds, and the coin flip, through the command.

    python benchmarks/learning.py [--seeds 0 1 2] [--only dpo kto coin] [--runs-dir DIR]

Prints and appends one row per run to `benchmarks/learning.csv`, from `pawl status --json` alone; runs that are in
the file already are not repeated. `benchmarks/learning.md` holds the tables made of it, with `--table`.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CSV = HERE / "learning.csv"
COLUMNS = [
    "arm",
    "seed",
    "round",
    "status",
    "pass@1",
    "pass@8",
    "length",
    "entropy",
    "examples",
    "seconds",
]
COIN = f"[{{type: '{HERE / 'coin_flip.py'}:score', name: coin}}]"
ARMS: dict[str, list[str]] = {
    "dpo": ["quickstart"],
    "kto": ["quickstart-kto"],
    "coin": [
        "quickstart",
        f"verifiers={COIN}",
        "acceptance={type: always}",
        "evaluation.verifiers=[{type: numeric_match}]",
    ],
}


def run(arm: str, seed: int, runs_dir: Path) -> list[list[str]]:
    """One run through the installed command; its rows by round."""
    name = f"{arm}-seed{seed}"
    config, *overrides = ARMS[arm]
    command = [
        "run",
        config,
        f"seed={seed}",
        *overrides,
        "--name",
        name,
        "--runs-dir",
        str(runs_dir),
    ]
    subprocess.run([pawl(), *command], check=True)
    done = subprocess.run(
        [pawl(), "status", str(runs_dir / name), "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    rows = []
    for each in json.loads(done.stdout)["rounds"]:
        metrics = each["metrics"]
        numbers = [
            metrics.get(k)
            for k in (
                "eval/pass@1",
                "eval/pass@8",
                "eval/length_tokens",
                "eval/entropy",
                "prefer/examples",
            )
        ]
        seconds = sum(each["seconds"].values())
        rows.append(
            [
                arm,
                str(seed),
                str(each["round"]),
                each["status"],
                *(f"{n:.4g}" if n is not None else "" for n in numbers),
                f"{seconds:.0f}",
            ]
        )
    return rows


def pawl() -> str:
    """The command beside this interpreter."""
    return str(Path(sys.executable).with_name("pawl"))


def known() -> list[dict[str, str]]:
    """Rows measured before."""
    if not CSV.exists():
        return []
    with CSV.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def table() -> str:
    """Markdown: held-out pass@1 by round, a row per run."""
    rows = known()
    rounds = sorted({int(r["round"]) for r in rows})
    lines = [
        "| arm | seed | "
        + " | ".join("base" if r == 0 else f"round {r}" for r in rounds)
        + " | pass@8 | tokens | seconds |"
    ]
    lines.append("|---" * (len(rounds) + 5) + "|")
    for arm, seed in sorted(
        {(r["arm"], r["seed"]) for r in rows}, key=lambda x: (list(ARMS).index(x[0]), x[1])
    ):
        own = {int(r["round"]): r for r in rows if (r["arm"], r["seed"]) == (arm, seed)}
        first, last = own[min(own)], own[max(own)]
        scores = [f"{float(own[r]['pass@1']):.2f}" if r in own else "" for r in rounds]
        seconds = sum(float(r["seconds"]) for r in own.values())
        cells = [
            arm,
            seed,
            *scores,
            f"{float(first['pass@8']):.2f} -> {float(last['pass@8']):.2f}",
            f"{float(first['length']):.0f} -> {float(last['length']):.0f}",
            f"{seconds:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument(
        "--table", action="store_true", help="only print the table of what was measured"
    )
    arguments = parser.parse_args()
    if not arguments.table:
        for seed in arguments.seeds:
            for arm in arguments.only:
                if any((r["arm"], r["seed"]) == (arm, str(seed)) for r in known()):
                    continue
                rows = run(arm, seed, arguments.runs_dir)
                fresh = not CSV.exists()
                with CSV.open("a", newline="", encoding="utf-8") as handle:
                    writer = csv.writer(handle)
                    if fresh:
                        writer.writerow(COLUMNS)
                    writer.writerows(rows)
    print(table())


if __name__ == "__main__":
    main()
