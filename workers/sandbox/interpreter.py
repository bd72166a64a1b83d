"""The interpreter that runs untrusted code: which one, what it must be able to read, our launcher compiled for it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from policies.base.errors import ConfigurationError, SandboxUnavailableError, explain

FLAGS = ("-s", "-S", "-P", "-B")
"""Like -I -S (no site, no user folder, no working directory on the path), but with PYTHONHASHSEED in force: the
whole environment is ours, and a verdict must not depend on the order of a set."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",  # nosec B108 # private: a mount of the sandbox
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
"""Everything that untrusted code finds in its environment. Many threads of a numeric library would use up the
address space on a large machine."""

_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

# setpriv starts the file with rights of root left; that the file can be opened afterwards is what counts.
_QUESTION = """
import ctypes, json, marshal, resource, sys
open(sys.argv[1], "rb").close()
code = marshal.dumps(compile(sys.stdin.read(), "<launcher>", "exec"))
answer = {"version": sys.version_info[:3], "prefix": sys.base_prefix, "path": sys.path, "code": code.hex()}
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that the sandbox can start."""

    executable: str
    version: tuple[int, int, int]
    library: tuple[str, ...]
    """Folders and files that it must read, as they are named on this machine."""
    launcher: bytes
    """The launcher as a marshalled code object of this interpreter."""


def first_uid() -> int | None:
    """The user that untrusted code runs as when this process is root; None when it need not change.

    Root's own number would still be root to the kernel, also inside bwrap's namespace.
    """
    return None if os.getuid() else 64000


def dropped(uid: int | None) -> list[str]:
    """The start of a command that runs the rest of it as user `uid`, with nothing left of root."""
    if uid is None:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SandboxUnavailableError(
            explain(
                "as root, untrusted code needs `setpriv` to become an ordinary user",
                value="not found",
                where="PATH",
                fix="install util-linux, or run as an ordinary user",
            )
        )
    drop = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    return [setpriv, f"--reuid={uid}", f"--regid={uid}", *drop, "--"]


@cache
def find_interpreter(same_version: bool) -> Interpreter:
    """The first Python that the sandbox's user can start: this one, else the system's.

    Args:
        same_version: only one of this process's minor version, because compiled packages are to be imported.

    Raises:
        SandboxUnavailableError: there is none; the message lists what was tried.
    """
    tried = []
    for executable in _candidates():
        try:
            found = _ask(executable)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            tried.append(f"{executable}: {error}"[:200])
            continue
        wanted = sys.version_info[:2]
        if found.version < (3, 11) or (same_version and found.version[:2] != wanted):
            tried.append(f"{executable}: is {'.'.join(map(str, found.version))}")
            continue
        return found
    raise SandboxUnavailableError(
        explain(
            "no Python that an unprivileged user can start"
            + (f" and that is {sys.version_info[0]}.{sys.version_info[1]}" if same_version else ""),
            value="; ".join(tried),
            where="this machine",
            fix="install python3 (3.11 or newer) with the system's package manager, or run as an ordinary user",
        )
    )


def _candidates() -> Iterator[str]:
    minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    places = [sys.executable, f"/usr/bin/{minor}", f"/usr/local/bin/{minor}"]
    places += ["/usr/bin/python3", "/usr/local/bin/python3"]
    seen = set()
    for place in places:
        real = os.path.realpath(place)
        if real not in seen and os.path.exists(real):
            seen.add(real)
            yield real


def _ask(executable: str) -> Interpreter:
    source = Path(__file__).with_name("launcher.py").read_text(encoding="utf-8")
    done = subprocess.run(
        [*dropped(first_uid()), executable, *FLAGS, "-c", _QUESTION, executable],
        input=source,
        capture_output=True,
        text=True,
        timeout=30,
        env=ENVIRONMENT,
        cwd="/",
        check=False,
    )
    if done.returncode:
        raise ValueError(done.stderr.strip().splitlines()[-1:] or f"exit code {done.returncode}")
    answer = json.loads(done.stdout)
    prefix = answer["prefix"]
    own = [] if prefix == "/usr" else [str(Path(prefix) / "lib"), str(Path(prefix) / "lib64")]
    paths = [*_SYSTEM, *own, *_SYSTEM_FILES]
    inside = [p for p in answer["path"] if not any(Path(p).is_relative_to(f) for f in paths)]
    first, second, third = answer["version"]
    return Interpreter(
        executable=executable,
        version=(first, second, third),
        library=tuple(p for p in [*paths, *inside] if os.path.exists(p)),
        launcher=bytes.fromhex(answer["code"]),
    )


def devices() -> list[str]:
    """Device files that untrusted code may open."""
    return [device for device in _DEVICES if os.path.exists(device)]


@dataclass(frozen=True)
class Packages:
    """Installed packages that untrusted code may import."""

    modules: tuple[tuple[str, str], ...] = ()
    """Name to import and the file that it comes from."""
    readable: tuple[str, ...] = ()


def find_packages(names: Sequence[str]) -> Packages:
    """Tell where the distributions called `names` are installed in this environment.

    Raises:
        ConfigurationError: one of them is not installed.
    """
    modules: list[tuple[str, str]] = []
    readable: list[str] = []
    for name in names:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise ConfigurationError(
                explain(
                    "a package for untrusted code is not installed",
                    value=name,
                    where="sandbox.packages",
                    fix=f"pip install {name}, or take it out of the list",
                )
            ) from error
        tops = {Path(f).parts[0] for f in distribution.files or () if ".." not in Path(f).parts}
        for top in sorted(t for t in tops if not t.endswith((".dist-info", ".pth", "__pycache__"))):
            place = Path(str(distribution.locate_file(top))).resolve()
            readable.append(str(place))
            file = place / "__init__.py" if place.is_dir() else place
            if file.suffix == ".py" and file.is_file():
                modules.append((top.removesuffix(".py"), str(file)))
    return Packages(tuple(modules), tuple(readable))
