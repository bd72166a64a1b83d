"""Names the folder that a new run gets: `D/N`, by default `runs/<experiment>-<number>` with the next free number."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.runs.folder import RunFolder
from policies.base.errors import ConfigurationError
from policies.storage import files

if TYPE_CHECKING:
    from orchestrator.config.run_config import RunConfig

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FIRST_FILES = re.compile(r"config\.json|config\.source\.yaml|driver\.json|epochs|.*\.tmp.*")
"""What a start leaves that was cut off before `run.json`, nothing at all included: no run yet, and the name is free."""
_NUM_SHOWN = 5


def new_run_folder(
    runs_dir: Path, name: str | None, experiment: str, *, taken: Collection[str] = ()
) -> RunFolder:
    """Choose the folder of a new run; nothing is created (`take` does that).

    Args:
        runs_dir: folder of all runs.
        name: that was given; None takes `<experiment>-<number>`.
        experiment: of the config.
        taken: names that an automatic one leaves free besides those in `runs_dir`: of copies in a bucket.

    Raises:
        ConfigurationError: the name or place cannot be used, or the folder exists already.
    """
    _check_place(runs_dir)
    if name is None:
        return RunFolder(_next_free(runs_dir.absolute(), _safe(experiment), taken))
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"a run cannot be called {name!r}. Set by: --name. Fix: letters, digits, '-', '_' and "
            "'.', at most 128"
        )
    path = runs_dir.absolute() / name
    if (path.exists() or path.is_symlink()) and not _is_cut_off_start(path):
        raise ConfigurationError(_exists_already(path))
    return RunFolder(path)


def take(folder: RunFolder, *, automatic: bool) -> RunFolder:
    """Create the folder of a new run, so that no other run that starts now gets it.

    Args:
        folder: the one that was chosen.
        automatic: its name was not given: where another run was faster, the next free number is taken.

    Raises:
        ConfigurationError: another run has taken the name that was given.
    """
    path = folder.path
    files.make_directory(path.parent)
    while True:
        with files.storage(path):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                if not automatic and not _is_cut_off_start(path):
                    raise ConfigurationError(_exists_already(path)) from None
            else:
                return RunFolder(path)
        if not automatic:
            return folder  # a start that was cut off, or goes on now: the claim on the run decides
        stem, _, number = path.name.rpartition("-")
        path = path.with_name(f"{stem}-{int(number) + 1}")


def give_back(folder: RunFolder) -> None:
    """Remove the folder of a run that was refused before anything was written into it."""
    with contextlib.suppress(OSError):
        os.rmdir(folder.path)


def _exists_already(path: Path) -> str:
    return (
        f"{path} exists already. Set by: --name. Fix: choose another name, or go on with "
        f"`pawl resume {path}`"
    )


def same_run(runs_dir: Path, name: str, config: RunConfig) -> RunFolder | None:
    """The run called `name`, to go on with; None when there is none yet.

    Raises:
        ConfigurationError: there is one, with another config; the keys that differ are named.
    """
    from orchestrator.runs.reader import read_config_tree

    _check_place(runs_dir)
    folder = RunFolder((runs_dir / name).absolute())
    if not _NAME.fullmatch(name) or not folder.identity.is_file():
        return None
    check_same_config(read_config_tree(folder), config, str(folder.path))
    return folder


def check_same_config(recorded: Any, config: RunConfig, where: str) -> None:
    """Refuse to go on with a run that was begun with another config.

    Args:
        recorded: the config of the run, as its folder or copy has it.
        config: the one that was given now.
        where: the run's folder, or its place in a bucket.

    Raises:
        ConfigurationError: they differ; the keys are named.
    """
    from orchestrator.config.number_formats import with_formats_of
    from orchestrator.runs.stored_config import sealed

    differ = _differences(recorded, sealed(with_formats_of(config, recorded)))
    if differ:
        shown = "; ".join(differ[:_NUM_SHOWN])
        more = f"; and {len(differ) - _NUM_SHOWN} more" if len(differ) > _NUM_SHOWN else ""
        raise ConfigurationError(
            f"{where} is a run of another config: {shown}{more}. Set by: the config, its overrides and "
            "--or-resume. Fix: undo the change, or give another --name"
        )


def _differences(before: Any, now: Any, at: str = "") -> list[str]:
    """`key: old -> new` for every value that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            line
            for key in keys
            for line in _differences(before.get(key), now.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if before == now else [f"{at}: {before!r} -> {now!r}"]


def _is_cut_off_start(path: Path) -> bool:
    return (
        path.is_dir()
        and not path.is_symlink()
        and all(_FIRST_FILES.fullmatch(p.name) for p in path.iterdir())
    )


def _check_place(runs_dir: Path) -> None:
    text = str(runs_dir)
    if any(ord(c) < 32 for c in text):
        raise ConfigurationError(
            f"{text!r} holds a control character. Set by: --runs-dir. Fix: choose another folder"
        )
    try:
        resolved = runs_dir.expanduser().resolve()
        is_file = resolved.exists() and not resolved.is_dir()
        home = _home()
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(
            f"{runs_dir} cannot be resolved ({error}). Set by: --runs-dir. Fix: choose another folder"
        ) from None
    if is_file:
        raise ConfigurationError(f"{runs_dir} is a file. Set by: --runs-dir. Fix: choose a folder")
    if resolved in (Path("/"), home):
        raise ConfigurationError(
            f"runs would lie directly in {resolved}. Set by: --runs-dir. Fix: choose a folder below it"
        )


def _home() -> Path | None:
    """The user's home folder; None where there is none."""
    try:
        return Path.home().resolve()
    except (OSError, RuntimeError):
        return None


def _safe(experiment: str) -> str:
    """The experiment's name as a folder name."""
    return _UNSAFE.sub("-", experiment).strip("-.")[:100] or "run"


def _next_free(runs_dir: Path, stem: str, taken: Collection[str]) -> Path:
    pattern = re.compile(rf"{re.escape(stem)}-([0-9]{{1,15}})")
    try:
        names = [p.name for p in runs_dir.iterdir()]
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise ConfigurationError(
            f"{runs_dir} cannot be read ({error.strerror}). Set by: --runs-dir. Fix: choose another folder"
        ) from None
    found = [pattern.fullmatch(name) for name in (*names, *taken)]
    return runs_dir / f"{stem}-{max((int(m[1]) for m in found if m), default=0) + 1}"
