"""Faults of what lies on disk: flipped, cut, foreign, missing, refused, full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from policies.storage.artifacts import marker_path
from tests.faults.scene import Moment, Scene

Damage = Callable[[Path], object]


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut_off(path: Path) -> None:
    """Lose the second half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def scribble(path: Path) -> None:
    """Replace a file by something that no reader knows."""
    path.write_bytes(b"\x00not what it was")


def _shard(scene: Scene, kind: str, round_index: int) -> Path:
    return scene.random.choice(
        sorted((scene.folder.round(round_index).path / kind).glob("*.parquet"))
    )


def damaged_shard(
    kind: str, damage: Damage, *, marker: bool = False
) -> Callable[[Scene, str], None]:
    """A file of the current round is damaged between a kill and the resume: it is set aside and made again."""

    def inject(scene: Scene, phase: str) -> None:
        index = scene.random.choice([1, 2])
        scene.kill_at(Moment("journal", index, phase))
        path = _shard(scene, kind, index)
        damage(marker_path(path) if marker else path)

    return inject


def marker_lost(scene: Scene, phase: str) -> None:
    """A marker is gone: its file counts for nothing and is made again."""
    index = scene.random.choice([1, 2])
    scene.kill_at(Moment("journal", index, phase))
    marker_path(_shard(scene, scene.random.choice(["trajectories", "verdicts"]), index)).unlink()


def file_lost(scene: Scene, phase: str) -> None:
    """A file is gone, its marker is there: it is made again."""
    index = scene.random.choice([1, 2])
    scene.kill_at(Moment("journal", index, phase))
    _shard(scene, scene.random.choice(["trajectories", "verdicts", "examples"]), index).unlink()


def beyond_repair(
    find: Callable[[Scene], Path], damage: Damage, *words: str
) -> Callable[[Scene, str], None]:
    """What cannot be made again is damaged: exit 3 names the file, nothing is changed; restored, the run goes on."""

    def inject(scene: Scene, phase: str) -> None:
        scene.kill_at(Moment("phase_started", 2, phase))
        path = find(scene)
        kept = scene.home / "kept"
        shutil.copy2(path, kept)
        journal = scene.folder.journal.read_bytes()
        damage(path)
        scene.refused(3, *words)
        if path != scene.folder.journal:
            assert scene.folder.journal.read_bytes() == journal, "nothing was decided meanwhile"
        for aside in (scene.folder.path / "quarantine").rglob("*"):
            if aside.is_file():
                aside.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(kept, path)
        scene.hit()

    return inject


def weights(scene: Scene) -> Path:
    """The weights that serve."""
    return scene.folder.policies / "0001" / "model.safetensors"


def starting_model(scene: Scene) -> Path:
    """The model that the run started from: a copy of its own, so that other scenes keep theirs."""
    return scene.model / "model.safetensors"


def manifest(scene: Scene) -> Path:
    """The manifest of the version that serves."""
    return scene.folder.policies / "0001" / "manifest.json"


def journal(scene: Scene) -> Path:
    """The journal."""
    return scene.folder.journal


def identity(scene: Scene) -> Path:
    """run.json."""
    return scene.folder.identity


def spoil_a_line(path: Path) -> None:
    """Make a line in the middle of a file unreadable."""
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][: len(lines[2]) // 2]
    path.write_bytes(b"\n".join(lines))


def torn_journal(scene: Scene, phase: str) -> None:
    """The last line of the journal was cut off while it was written."""
    scene.kill_at(Moment("phase_finished", scene.random.choice([1, 2]), phase))
    data = scene.folder.journal.read_bytes()
    scene.folder.journal.write_bytes(data[: -scene.random.randint(1, 40)])


def torn_events(scene: Scene, phase: str) -> None:
    """The event log, which is for people, has garbage in it and a torn end."""
    scene.kill_at(scene.moment_in(phase))
    data = scene.folder.events.read_bytes()
    scene.folder.events.write_bytes(b"\xff\xfe garbage\n" + data[:-7])


def foreign_files(scene: Scene, phase: str) -> None:
    """Temporaries of dead processes, files of a desktop, an editor's backup, an empty round folder."""
    scene.kill_at(scene.moment_in(phase))
    run = scene.folder
    index = run.rounds()[-1]
    for name in ("trajectories/.shard-0000.parquet.99999.tmp", "verdicts/.DS_Store", "notes.txt~"):
        path = run.round(index).path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half a file")
    (run.path / "rounds" / "lost+found").mkdir()
    (run.path / ".journal.jsonl.99999.tmp").write_bytes(b"{")


def half_published(scene: Scene, phase: str) -> None:
    """A policy folder without a manifest: its weights were moved, the process died before they were marked."""
    scene.kill_at(Moment("journal", 2, phase))
    target = scene.folder.policies / "0002"
    if phase == "publish":
        (target / "manifest.json").unlink()
        return
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"half")


def storage_fails(code: int) -> Callable[[Scene, str], None]:
    """From a random change of a file on, the disk refuses everything: exit 75 names the path; later it works again."""

    def inject(scene: Scene, phase: str) -> None:
        first = scene.random.randint(15, 250)
        driver = scene.drive(Moment("storage", nth=first, error=code, action="note"))
        found = driver.wait()
        assert driver.fired.exists()
        assert found == 75, f"exit code {found}:\n{driver.text[-3000:]}"
        assert os.strerror(code) in driver.text
        scene.hit()

    return inject


def file_size_limit(scene: Scene, phase: str) -> None:
    """A quota (RLIMIT_FSIZE) refuses files over some KB: exit 75; without it the run goes on."""
    driver = scene.drive(limits={"FSIZE": scene.random.choice([3000, 5000, 7000])})
    found = driver.wait()
    assert found == 75, f"exit code {found}:\n{driver.text[-3000:]}"
    assert os.strerror(errno.EFBIG) in driver.text
    scene.hit()


@contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    """A small file system in memory at `path`. Needs root."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "pawl-fault", str(path)], check=True, timeout=30
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=30)


def disk_full(scene: Scene, phase: str) -> None:
    """The run lies on a real file system that another program fills to the last byte; then there is room again."""
    place = scene.folder.path.parent
    with mounted(place, "size=8m"):
        driver = scene.drive(scene.moment_in(phase, "hold"))
        driver.wait_until_fired()
        filler = place / "filler"
        with filler.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
            while handle.write(b"x" * 4096):
                pass
        driver.go_on()
        found = driver.wait()
        assert found == 75, f"exit code {found}:\n{driver.text[-3000:]}"
        scene.hit()
        filler.unlink()
        scene.finish()
        kept = scene.home / "kept"
        shutil.copytree(place, kept)
    shutil.copytree(kept, place, dirs_exist_ok=True)


def names_used_up(scene: Scene, phase: str) -> None:
    """A real file system that has bytes but no more names (inodes); then it gets more."""
    place = scene.folder.path.parent
    with mounted(place, f"size=50m,nr_inodes={scene.random.randint(30, 90)}"):
        driver = scene.drive()
        found = driver.wait()
        assert found == 75, f"exit code {found}:\n{driver.text[-3000:]}"
        assert os.strerror(errno.ENOSPC) in driver.text
        scene.hit()
        remount = ["mount", "-o", "remount,nr_inodes=5000", str(place)]
        subprocess.run(remount, check=True, timeout=30)
        scene.finish()
        kept = scene.home / "kept"
        shutil.copytree(place, kept)
    shutil.copytree(kept, place, dirs_exist_ok=True)


def read_only(scene: Scene, phase: str) -> None:
    """The file system turns read-only in the middle, as after a disk error; then it is mounted writable again."""
    place = scene.folder.path.parent
    with mounted(place, "size=50m"):
        # Without a delay: only then does the whole driver stand still, and not just the thread that waited for it.
        driver = scene.drive(replace(scene.moment_in(phase, "hold"), delay=0.0))
        driver.wait_until_fired()
        _make_read_only(place)
        driver.go_on()
        found = driver.wait()
        assert found == 75, f"exit code {found}:\n{driver.text[-3000:]}"
        assert os.strerror(errno.EROFS) in driver.text
        scene.hit()
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True, timeout=30)
        scene.finish()
        kept = scene.home / "kept"
        shutil.copytree(place, kept)
    shutil.copytree(kept, place, dirs_exist_ok=True)


def _make_read_only(place: Path) -> None:
    """Refused by the kernel while a file is open for writing, as that of a heartbeat is for a moment."""
    command = ["mount", "-o", "remount,ro", str(place)]
    deadline = time.monotonic() + 10
    while subprocess.run(command, check=False, timeout=30, stderr=subprocess.DEVNULL).returncode:
        assert time.monotonic() < deadline, "the file system stays busy: nothing was broken"
        time.sleep(0.02)


def removed_while_running(scene: Scene, phase: str) -> None:
    """Somebody deletes a round that is being worked on, while the driver runs: it is made again from the journal."""
    scene.kill_at(Moment("phase_started", 2, "collect", delay=0.02))
    shutil.rmtree(scene.folder.round(2).path / "trajectories", ignore_errors=True)
    shutil.rmtree(scene.folder.round(2).path / "verdicts", ignore_errors=True)


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(value), encoding="utf-8")
