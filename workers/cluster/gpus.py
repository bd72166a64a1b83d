"""GPUs that this machine has, and how many of them one process may see: said before torch is loaded.

A process that trains sees one GPU, or none: with two, transformers' trainer would spread the model over them
(`DataParallel`) and lose the forward pass that we bound to it. Ray says nothing to a worker that asked for no GPU,
which would then see them all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata

from policies.base.errors import TrainingError, explain

VISIBLE = "CUDA_VISIBLE_DEVICES"
_SMI_SECONDS = 10


def usable_gpus() -> list[tuple[int, float]]:
    """Memory in bytes and CUDA compute capability (0.0: not known) of each GPU that this process may use.

    None where the installed torch is built for CPUs only, whatever the machine has.
    """
    visible = os.environ.get(VISIBLE)
    if visible in ("", "-1") or shutil.which("nvidia-smi") is None or _torch_is_for_cpus():
        return []
    lines = _ask_driver("memory.total,compute_cap") or _ask_driver("memory.total")
    rows = [[field.strip() for field in line.split(",")] for line in lines]
    found = [
        (int(row[0]) << 20, float(row[1]) if len(row) > 1 and _is_number(row[1]) else 0.0)
        for row in rows
        if row[0].isdecimal()
    ]
    return found[: len(visible.split(","))] if visible else found


def show_only(devices: Sequence[str]) -> None:
    """Let this process see these GPUs and no others, whatever its environment said before.

    Args:
        devices: numbers or ids as the driver gives them; empty hides all.
    """
    os.environ[VISIBLE] = ",".join(devices)


@contextmanager
def showing_at_most(count: int) -> Iterator[None]:
    """Let this process see the first `count` (0 or 1) of its GPUs; its environment is put back at the end."""
    before = os.environ.get(VISIBLE)
    named = [name.strip() for name in (before or "").split(",") if name.strip()]
    if before is None:
        named = ["0"]
    show_only(named[:count])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = before


def visible_gpus() -> int:
    """Number of GPUs that torch sees in this process; loads torch."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def require_one_gpu(seen: int) -> None:
    """Refuse to train in a process that sees several GPUs.

    Args:
        seen: number of GPUs, as torch or transformers count them.

    Raises:
        TrainingError: more than one.
    """
    if seen > 1:
        raise TrainingError(
            explain(
                "a training process must see one GPU: with several, transformers would spread the model over them and "
                "what is trained would not be what was asked for",
                value=f"{seen} GPUs",
                where=f"{VISIBLE} of the training process",
                fix="set training.resources.num_gpus=1 (one process for each of training.workers), or start the "
                f"process with {VISIBLE}=0",
            )
        )


def _torch_is_for_cpus() -> bool:
    """Read from the metadata: nothing is imported. A torch whose version does not say counts as built for GPUs."""
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def _ask_driver(fields: str) -> list[str]:
    """One line per GPU; none when the driver fails, or is too old to know a field."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(
            query, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.splitlines()


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
