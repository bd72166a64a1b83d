"""Runs to damage: finished ones and ones that were cut off in each part of a round, small and all in one process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.runs.events import Event, EventKind
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.quarantine import Quarantine
from orchestrator.runs.state import results_of
from orchestrator.tracking.spool import ArtifactLine, FinishLine, RoundLine, Spool
from policies.base.errors import PawlError
from tests.support.cut_updates import cut_at
from tests.support.fake_runs import fake_config

SMALL: dict[str, Any] = {"high": 5, "held_out": 3, "per_round": 4, "samples": 3, "per_shard": 2}
KTO: dict[str, Any] = {
    "rollout": {
        "engine": {"type": "fake"},
        "strategy": {"type": "self_refine"},
        "samples_per_prompt": 3,
        "prompts_per_shard": 2,
    },
    "preferences": {"type": "thresholded"},
    "training": {"engine": {"type": "fake"}, "loss": {"type": "kto"}},
}
"""Two turns for each attempt, and unpaired examples."""


def _training(**more: Any) -> dict[str, Any]:
    return {"engine": {"type": "fake"}, "batch_size": 2, **more}


@dataclass(frozen=True)
class Subject:
    """A run, and what it comes to when nobody damages it."""

    name: str
    folder: RunFolder
    finished: bool

    def copy_to(self, target: Path) -> RunFolder:
        """A copy to damage."""
        shutil.copytree(self.folder.path, target, symlinks=True)
        return RunFolder(target)


Maker = Callable[[Path, int], RunFolder]


def _stop(kind: EventKind, round_index: int, phase: str | None = None) -> Callable[[Event], None]:
    """An observer that ends the driver, as Ctrl-C does, at an event."""

    def look(event: Event) -> None:
        if (event.kind, event.round) == (kind, round_index) and phase in (None, event.phase):
            raise KeyboardInterrupt

    return look


def _run(
    home: Path, seed: int, *, stop: Callable[[Event], None] | None = None, **changes: Any
) -> RunFolder:
    folder = RunFolder(home / "run")
    config = fake_config(home, **SMALL, seed=seed, **changes)
    with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
        observers = [stop] if stop else []
        run_experiment(config, folder, source="# as it was given\n", observers=observers)
    return folder


def judged(home: Path, seed: int) -> RunFolder:
    """Finished: pairs, a judge with its cache, optimizer state that is carried, tracking that was never sent."""
    folder = _run(
        home,
        seed,
        judges=[{"type": "rubric", "backend": {"type": "fake"}}],
        training=_training(optimizer="carry"),
    )
    _with_tracking(folder)
    return folder


def _with_tracking(folder: RunFolder) -> None:
    """Lines of the driver for a server that was away."""
    spool = Spool(folder.tracking)
    for result in results_of(folder):
        place = f"rounds/{result.round:04d}"
        spool.append(RoundLine(at=1, result=result, seconds={"draw": 1.0}, folder=place))
    spool.append(ArtifactLine(at=2, path="report.html", name="report.html"))
    spool.save_offset(spool.size())
    spool.append(FinishLine(at=3, status="FINISHED", reason="all rounds are done"))


def thinned(home: Path, seed: int) -> RunFolder:
    """Finished, with old rounds and policies removed, and something in quarantine."""
    folder = _run(home, seed, rounds=3, retention={"policies": 1, "trajectories": 1})
    spoilt = folder.round(3).shard(0).of("verdicts")
    copy = folder.path / "rounds" / "0003" / "verdicts" / "shard-0009.parquet"
    shutil.copy(spoilt, copy)
    Quarantine(folder).set_aside(copy, "for the sake of the example")
    return folder


def collecting(home: Path, seed: int) -> RunFolder:
    """Cut off while it collected its second round: unpaired examples of conversations."""
    return _run(home, seed, stop=_stop(EventKind.SHARD_STAGE_FINISHED, 2), **KTO)


def training(home: Path, seed: int) -> RunFolder:
    """Cut off in an update that has a checkpoint."""
    folder = RunFolder(home / "run")
    config = fake_config(home, **SMALL, seed=seed, training=_training(checkpoint_steps=1))
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(PawlError, match="CutOffError"))
        stack.enter_context(cut_at(3))
        run_experiment(config, folder, source="# as it was given\n")
    return folder


def trained(home: Path, seed: int) -> RunFolder:
    """Cut off between an update and its publishing."""
    return _run(
        home,
        seed,
        stop=_stop(EventKind.PHASE_FINISHED, 1, "train"),
        training=_training(optimizer="carry"),
    )


def measuring(home: Path, seed: int) -> RunFolder:
    """Cut off while the new version was measured."""
    return _run(home, seed, stop=_stop(EventKind.PHASE_FINISHED, 1, "sync"))


MAKERS: dict[str, Maker] = {
    maker.__name__: maker for maker in (judged, thinned, collecting, training, trained, measuring)
}


def make(home: Path, name: str, seed: int = 0) -> Subject:
    """One of the subjects, made in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    folder = MAKERS[name](home, seed)
    return Subject(name, folder, finished=name in ("judged", "thinned"))


def outcome(folder: RunFolder) -> dict[str, str]:
    """What a run decided and made: its journal's results and the bytes of its policies."""
    found = {f"round {r.round}": r.model_dump_json() for r in results_of(folder)}
    for path in sorted(folder.policies.glob("[0-9]*/*")):
        if path.suffix in (".safetensors", ".json") and path.name != "manifest.json":
            found[path.relative_to(folder.path).as_posix()] = path.read_bytes().hex()
    return found


def resumed(folder: RunFolder) -> dict[str, str]:
    """What it comes to."""
    resume_experiment(folder)
    return outcome(folder)
