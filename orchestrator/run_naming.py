"""Which folder a new run gets: `D/N`, by default `runs/<experiment>-<number>` with the next free number."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.run_folder import RunFolder
from policies.errors import ConfigurationError

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def new_run_folder(runs_dir: Path, name: str | None, experiment: str) -> RunFolder:
    """Choose the folder of a new run; nothing is created.

    Raises:
        ConfigurationError: the name or place cannot be used, or the folder exists already.
    """
    _check_place(runs_dir)
    if name is None:
        return RunFolder(_next_free(runs_dir.absolute(), _safe(experiment)))
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"a run cannot be called {name!r}. Set by: --name. Fix: letters, digits, '-', '_' and "
            "'.', at most 128"
        )
    path = runs_dir.absolute() / name
    if path.exists() or path.is_symlink():
        raise ConfigurationError(
            f"{path} exists already. Set by: --name. Fix: choose another name, or go on with "
            f"`pawl resume {path}`"
        )
    return RunFolder(path)


def _check_place(runs_dir: Path) -> None:
    text = str(runs_dir)
    if any(ord(c) < 32 for c in text):
        raise ConfigurationError(
            f"{text!r} holds a control character. Set by: --runs-dir. Fix: choose another folder"
        )
    try:
        resolved = runs_dir.expanduser().resolve()
        is_file = resolved.exists() and not resolved.is_dir()
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(
            f"{runs_dir} cannot be resolved ({error}). Set by: --runs-dir. Fix: choose another folder"
        ) from None
    if is_file:
        raise ConfigurationError(f"{runs_dir} is a file. Set by: --runs-dir. Fix: choose a folder")
    if resolved in (Path("/"), Path.home().resolve()):
        raise ConfigurationError(
            f"runs would lie directly in {resolved}. Set by: --runs-dir. Fix: choose a folder below it"
        )


def _safe(experiment: str) -> str:
    """The experiment's name as a folder name."""
    return _UNSAFE.sub("-", experiment).strip("-.")[:100] or "run"


def _next_free(runs_dir: Path, stem: str) -> Path:
    pattern = re.compile(rf"{re.escape(stem)}-(\d+)")
    try:
        found = [pattern.fullmatch(p.name) for p in runs_dir.iterdir()]
    except FileNotFoundError:
        found = []
    except OSError as error:
        raise ConfigurationError(
            f"{runs_dir} cannot be read ({error.strerror}). Set by: --runs-dir. Fix: choose another folder"
        ) from None
    return runs_dir / f"{stem}-{max((int(m[1]) for m in found if m), default=0) + 1}"
