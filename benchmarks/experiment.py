"""Runs arms of an experiment through the installed command; one row per round, from `pawl status --json` alone."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Row = dict[str, str]


@dataclass(frozen=True)
class Experiment:
    """Arms (a config and its overrides), and which metrics are kept in which file."""

    arms: dict[str, list[str]]
    """Name of the arm: the config, then overrides."""
    metrics: dict[str, str]
    """Column: metric of a round."""
    path: Path
    """The CSV file; runs that are in it are not repeated."""

    @property
    def columns(self) -> list[str]:
        return ["arm", "seed", "round", "status", *self.metrics, "seconds"]

    def known(self) -> list[Row]:
        """Rows measured before."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))

    def measure(self, arm: str, seed: int, runs_dir: Path) -> None:
        """One run, and its rows by round; nothing when the file has it."""
        if any((row["arm"], row["seed"]) == (arm, str(seed)) for row in self.known()):
            return
        name = f"{arm}-seed{seed}"
        config, *overrides = self.arms[arm]
        where = ["--name", name, "--runs-dir", str(runs_dir)]
        subprocess.run([pawl(), "run", config, f"seed={seed}", *overrides, *where], check=True)
        self.append(rows_of(runs_dir / name, arm, seed, self.metrics))

    def append(self, rows: list[Row]) -> None:
        """Add rows to the file."""
        fresh = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, self.columns)
            if fresh:
                writer.writeheader()
            writer.writerows(rows)

    def runs(self) -> list[tuple[str, str, list[Row]]]:
        """Arm, seed and rows of every run in the file, in the order of the arms."""
        rows = self.known()
        found = []
        for arm in self.arms:
            for seed in sorted({r["seed"] for r in rows if r["arm"] == arm}, key=int):
                own = [r for r in rows if (r["arm"], r["seed"]) == (arm, seed)]
                found.append((arm, seed, sorted(own, key=lambda r: int(r["round"]))))
        return found

    def main(self, description: str, table: Callable[[], str]) -> None:
        """Run what is missing, then print the table."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
        parser.add_argument("--only", nargs="*", choices=list(self.arms), default=list(self.arms))
        parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
        parser.add_argument("--table", action="store_true", help="only print what was measured")
        arguments = parser.parse_args()
        if not arguments.table:
            for seed in arguments.seeds:
                for arm in arguments.only:
                    self.measure(arm, seed, arguments.runs_dir)
        print(table())


def rows_of(run: Path, arm: str, seed: int, metrics: dict[str, str]) -> list[Row]:
    """One row per round of a run folder."""
    done = subprocess.run(
        [pawl(), "status", str(run), "--json"], check=True, capture_output=True, text=True
    )
    rows = []
    for each in json.loads(done.stdout)["rounds"]:
        values = {column: each["metrics"].get(name) for column, name in metrics.items()}
        rows.append(
            {
                "arm": arm,
                "seed": str(seed),
                "round": str(each["round"]),
                "status": each["status"],
                **{column: "" if v is None else f"{v:.4g}" for column, v in values.items()},
                "seconds": f"{sum(each['seconds'].values()):.0f}",
            }
        )
    return rows


def pawl() -> str:
    """The command beside this interpreter."""
    return str(Path(sys.executable).with_name("pawl"))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def by_round(rows: list[Row], column: str, rounds: int) -> list[str]:
    """The column's values for rounds 0 to `rounds`, empty where a run has fewer."""
    own = {int(r["round"]): r[column] for r in rows}
    return [f"{float(own[r]):.2f}" if own.get(r) else "" for r in range(rounds + 1)]


def change(rows: list[Row], column: str, digits: int = 2) -> str:
    """First and last value: `0.70 -> 1.00`."""
    values = [float(r[column]) for r in rows if r[column]]
    return f"{values[0]:.{digits}f} -> {values[-1]:.{digits}f}" if values else ""
