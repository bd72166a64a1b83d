"""Damage to files of runs, one at a time and at random: what `scripts/damage` plays, and a test a sample of.

Every kind of file of finished and interrupted runs is flipped in a bit, cut off, emptied, deleted, swapped with another
file of the run or with its namesake of another run, or joined by a file of nobody. Then `pawl verify` has to notice
(exit code 3, or a note where the file decides nothing), `status`, `show` and `trace` must show nothing that the whole
run does not show, `resume` must end where the whole run ends or refuse, and none may end with a traceback.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.runs.folder import RunFolder
from tests.faults.damaged_runs import MAKERS, Subject, make, outcome

KINDS = ("flip", "cut", "empty", "delete", "swap", "namesake", "foreign")
NOT_CHECKED = re.compile(r".*/lock|lock|activity\.json|activity/.*|.*\.tmp|.*/attempts/.*")
"""Lock files, signs of life that are there only while a driver works, and drafts: nothing is told from them."""
FOREIGN = (
    "notes.txt",
    ".DS_Store",
    "journal.jsonl.bak",
    "a name\nwith a line end",
    "epochs/notes.json",
    "policies/notes.md",
    "policies/0001/README.md",
    "rounds/notes.txt",
    "rounds/0001/shard.txt",
    "rounds/0001/examples/shard-x.parquet",
    "rounds/0001/examples/copy of shard-0000.parquet.json",
    "removed/policy-x.json",
    "judge_cache/worker-.txt",
    "tracking/spool.jsonl~",
    "quarantine.txt",
)
_MOMENTARY = frozenset(
    {
        "path",
        "state",
        "message",
        "warnings",
        "seconds",
        "throughput",
        "current",
        "damage",
        "activity",
    }
)
"""What `status` and `show` say of clocks, drivers and logs, and of damage itself."""


@dataclass(frozen=True)
class Damage:
    """What is done to which file. Example: `Damage("judged", "flip", "run.json", 7)`."""

    subject: str
    kind: str
    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.subject}: {self.kind} {self.name!r} (seed {self.seed})"


@dataclass
class Ground:
    """The subjects, and what the commands say of them while they are whole."""

    home: Path
    subjects: dict[str, Subject] = field(default_factory=dict)
    said: dict[str, dict[str, Any]] = field(default_factory=dict)
    ends: dict[str, dict[str, str]] = field(default_factory=dict)
    """What each interrupted run comes to."""

    def prepare(self, names: Sequence[str]) -> None:
        """Make the subjects, each with a seed of its own."""
        for number, name in enumerate(names):
            subject = self.subjects[name] = make(self.home / name, name, seed=number)
            whole = subject.copy_to(self.home / name / "whole" / "run")
            self.said[name] = {
                " ".join(command): pawl(whole, *command)[1] for command in commands(subject)
            }
            if not subject.finished:
                code, _, text = pawl_text(whole, "resume")
                assert code == 0, text
            self.ends[name] = outcome(whole)
            shutil.rmtree(whole.path)


def commands(subject: Subject) -> list[tuple[str, ...]]:
    """The readers, each with its arguments."""
    trajectory = _some_trajectory(subject.folder)
    found = [("verify", "--deep"), ("status",), ("show", "--round", "1")]
    found.append(("show", "--round", "1", "--trajectories"))
    return [*found, ("trace", trajectory)] if trajectory else found


def _some_trajectory(folder: RunFolder) -> str:
    from orchestrator.runs.state import first_records
    from policies.base.records import Trajectory

    for index in reversed(folder.rounds()):
        for place in (folder.round(index), folder.round(index).evaluation):
            for found in first_records(place, "trajectories", Trajectory, 1):
                return found.id
    return ""


def pawl_text(folder: RunFolder, command: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and everything that a command printed."""
    done = CliRunner().invoke(app, [command, str(folder.path), *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return -1, "", f"{type(done.exception).__name__}: {done.exception}"
    return done.exit_code, done.stdout, done.output


def pawl(folder: RunFolder, command: str, *arguments: str) -> tuple[int, Any, str]:
    """The same with `--json`; the value is None where nothing was printed that can be read."""
    code, printed, text = pawl_text(folder, command, *arguments, "--json")
    try:
        return code, json.loads(printed), text
    except ValueError:
        return code, None, text


def choose(ground: Ground, count: int, seed: int, only: str = "") -> list[Damage]:
    """`count` damages, so that every kind of file of every subject has its turn."""
    chosen = random.Random(seed)
    places: list[tuple[str, str, list[str]]] = []
    for subject in ground.subjects.values():
        by_kind: dict[str, list[str]] = defaultdict(list)
        for name in file_names(subject.folder):
            by_kind[re.sub(r"[0-9a-f]{12}|\d+", "#", name)].append(name)
        places += [(subject.name, kind, names) for kind, names in sorted(by_kind.items())]
    chosen.shuffle(places)
    found: list[Damage] = []
    while len(found) < count:
        for subject_name, _, names in places:
            kind = chosen.choice(KINDS[:-1] if chosen.random() < 0.93 else KINDS[-1:])
            name = chosen.choice(FOREIGN if kind == "foreign" else names)
            found.append(Damage(subject_name, kind, name, chosen.getrandbits(32)))
    return [damage for damage in found if only in str(damage)][:count]


def file_names(folder: RunFolder) -> list[str]:
    """Files that can be damaged, relative to the run."""
    names = [p.relative_to(folder.path).as_posix() for p in folder.path.rglob("*") if p.is_file()]
    return sorted(name for name in names if not NOT_CHECKED.fullmatch(name))


def inflict(ground: Ground, damage: Damage, folder: RunFolder) -> bool:
    """Do it; False where nothing changed (two files with equal bytes)."""
    chosen = random.Random(damage.seed)
    path = folder.path / damage.name
    before = path.read_bytes() if path.is_file() else b""
    if damage.kind == "foreign":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chosen.choice((b"", b"{}\n", b"anything\n", bytes(range(256)))))
        return True
    if damage.kind == "delete":
        path.unlink()
        return True
    if damage.kind == "swap":
        others = [n for n in file_names(folder) if n != damage.name]
        alike = [n for n in others if Path(n).suffix == path.suffix]
        other = folder.path / chosen.choice(alike or others)
        after = other.read_bytes()
        other.write_bytes(before)
    elif damage.kind == "namesake":
        places = [s.folder.path / damage.name for s in ground.subjects.values()]
        twins = [p for p in places if p.is_file() and p.read_bytes() != before]
        after = chosen.choice(twins).read_bytes() if twins else before
    elif damage.kind == "flip" and before:
        data = bytearray(before)
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        after = bytes(data)
    elif damage.kind == "cut" and before:
        after = before[: chosen.choice((len(before) - 1, chosen.randrange(len(before))))]
    else:
        after = b""
    path.write_bytes(after)
    return after != before


def play(ground: Ground, damage: Damage, home: Path) -> list[str] | None:
    """What was wrong with how the commands took it; None where the damage changed nothing.

    Interrupted runs are resumed after every third; finished ones, of which a resume computes nothing, after every
    eighth.
    """
    subject = ground.subjects[damage.subject]
    folder = subject.copy_to(home / "damaged" / "run")
    try:
        if not inflict(ground, damage, folder):
            return None
        found = list(_look(ground, damage, subject, folder))
        if damage.seed % (8 if subject.finished else 3) == 0:
            found += _go_on(ground, damage, folder)
        return found
    finally:
        shutil.rmtree(folder.path)


def _look(ground: Ground, damage: Damage, subject: Subject, folder: RunFolder) -> Iterator[str]:
    before = {p: p.stat().st_mtime_ns for p in folder.path.rglob("*") if p.is_file()}
    for command, *arguments in commands_of(ground, subject):
        code, said, text = pawl(folder, command, *arguments)
        yield from _told_well(command, code, text)
        whole = ground.said[subject.name][_key(command, arguments)]
        if command == "verify":
            if code == 0 and notes_of(said) == notes_of(whole):
                yield "verify did not notice"
            if damage.kind == "foreign" and code != 0:
                yield f"verify refuses a foreign file: {text[-300:]}"
        elif code == 0:
            yield from _made_up(command, said, whole)
    if before != {p: p.stat().st_mtime_ns for p in folder.path.rglob("*") if p.is_file()}:
        yield "a reader changed the folder"


def commands_of(ground: Ground, subject: Subject) -> list[tuple[str, ...]]:
    """The commands whose answers on the whole run are known."""
    return [tuple(key.split(" ")) for key in ground.said[subject.name]]


def _key(command: str, arguments: Sequence[str]) -> str:
    return " ".join([command, *arguments])


def notes_of(said: Any) -> Counter[str]:
    """What `verify` said besides numbers."""
    checks = said["checks"].values() if said else ()
    return Counter(_plain(note) for check in checks for note in check["notes"])


def _plain(text: str) -> str:
    return re.sub(r"/\S*/(damaged|whole)/run\b", "RUN", text)


def _told_well(command: str, code: int, text: str) -> Iterator[str]:
    if code not in (0, 1, 2, 3, 75) or "internal error" in text or "Traceback" in text:
        yield f"{command} ended with {code}: {text[-600:]}"
    if code == 1:
        yield f"{command} failed without saying what is damaged: {text[-600:]}"


def _made_up(command: str, said: Any, whole: Any) -> Iterator[str]:
    """Values that the whole run does not have: something damaged was shown as sound."""
    known = dict(_leaves(whole))
    is_told = isinstance(said, dict) and len(said.get("damage", ())) > len(whole.get("damage", ()))
    for place, value in _leaves(said):
        if is_told and "on_disk" in place:
            continue
        if (
            _MOMENTARY.isdisjoint(place)
            and known.get(place, value) != value
            and value not in (None, "", "unfinished")
        ):
            yield f"{command} shows {'.'.join(map(str, place))} = {value!r}, it is {known[place]!r}"
            return


def _leaves(value: Any, place: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            name = inner.get("id", index) if isinstance(inner, dict) else index
            yield from _leaves(inner, (*place, name))
    else:
        yield place, value


def _go_on(ground: Ground, damage: Damage, folder: RunFolder) -> Iterator[str]:
    code, _, text = pawl_text(folder, "resume")
    yield from _told_well("resume", code, text)
    if code != 0:
        return
    came_to, meant = outcome(folder), ground.ends[damage.subject]
    wrong = [name for name in meant if came_to.get(name, meant[name]) != meant[name]]
    if damage.kind not in ("flip", "cut", "empty", "delete", "swap", "namesake"):
        wrong += sorted(meant.keys() - came_to.keys())
    touched = {damage.name}
    if wrong and not set(wrong) <= touched and not ground.subjects[damage.subject].finished:
        yield f"resume used it: {wrong[:3]} came out differently"


def say(line: str) -> None:
    """A line on stdout, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Play as many damages as asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/damage", description="Damages files of runs and counts who is fooled."
    )
    parser.add_argument("--count", type=int, default=500, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the same seed damages the same")
    parser.add_argument("--only", default="", help="damages whose description contains this")
    parser.add_argument("--subjects", default=",".join(MAKERS), help="which runs, by name")
    given = parser.parse_args(arguments)
    logging.raiseExceptions = False  # a warning to a stream that a test of the command has closed
    home, started = Path(tempfile.mkdtemp(prefix="pawl-damage-")), time.monotonic()
    ground = Ground(home)
    ground.prepare(given.subjects.split(","))
    done, without_effect, num_resumed, wrong = Counter[str](), 0, 0, Counter[str]()
    with suppress(KeyboardInterrupt):  # what was played until then is told
        for damage in choose(ground, given.count, given.seed, given.only):
            found = play(ground, damage, home)
            if found is None:
                without_effect += 1
                continue
            done[damage.kind] += 1
            finished = ground.subjects[damage.subject].finished
            num_resumed += damage.seed % (8 if finished else 3) == 0
            for sentence in found:
                wrong[sentence.split(" ")[0]] += 1
                say(f"WRONG {damage}: {sentence}")
            if done.total() % 50 == 0:
                say(f"{done.total()} played")
    shutil.rmtree(home, ignore_errors=True)
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(done.items()))
    minutes = (time.monotonic() - started) / 60
    say(
        f"seed {given.seed}: {done.total()} damages ({counts}) of {len(ground.subjects)} runs, {without_effect} "
        f"without effect, {num_resumed} resumed, {minutes:.1f} minutes; "
        f"wrong: {dict(wrong) or 'none'}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
