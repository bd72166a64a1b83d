"""A model directory that no library could run: what the fake engines read and write instead of weights.

It has a real safetensors file, so that publishing, digests and loading checks work on it, and `fake_policy.json`
with the one number that the fake sampler knows: `skill`, the share of questions that it answers rightly.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from policies.base.errors import InputError, explain
from policies.storage.bounded_json import read_json
from policies.storage.files import raise_if_disk_failed

FAKE_POLICY = "fake_policy.json"
_MAX_BYTES = 4096


def write_fake_model(path: Path, skill: float, *, seed: str = "") -> Path:
    """Fill the folder `path` with a fake model of this skill and return it; equal arguments give equal bytes.

    Example:
        >>> import tempfile
        >>> folder = write_fake_model(Path(tempfile.mkdtemp()) / "model", skill=0.3)
        >>> read_skill(folder)
        0.3
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_bytes(safetensors_bytes(f"{skill!r} {seed}"))
    (path / FAKE_POLICY).write_text(json.dumps({"skill": skill}) + "\n", encoding="utf-8")
    return path


def read_skill(path: Path) -> float:
    """The skill of the fake model in `path`.

    Raises:
        InputError: there is no such file, or it states no share.
    """
    file = path / FAKE_POLICY
    try:
        value = read_json(file, max_bytes=_MAX_BYTES)["skill"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_if_disk_failed(error, file)
        value = f"{type(error).__name__}: {error}"
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise InputError(
            explain(
                f"{file} states no share of right answers; the fake engine serves fake policies only",
                value=str(value)[:200],
                where="policy.model",
                fix="give configs/fake-model, or use another rollout.engine and training.engine",
            )
        )
    return float(value)


def safetensors_bytes(content: str) -> bytes:
    """A safetensors file with one tensor of 32 bytes, the sha256 of `content`."""
    header = json.dumps(
        {"weight": {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}}
    ).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the data to 8 bytes
    return len(header).to_bytes(8, "little") + header + hashlib.sha256(content.encode()).digest()
