"""Model folders of the fuzz suite: a tiny one with the files of a real one, spoilt by a seeded choice of changes."""

from __future__ import annotations

import copy
import json
import os
import random
import socket
import stat
from pathlib import Path
from typing import Any

from fuzz_cases import LONG, ROOT, odd_bytes


def good_model(folder: Path) -> None:
    """A tiny model folder: the fake one, with the files of a real one beside it."""
    folder.mkdir()
    for file in (ROOT / "configs" / "fake-model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(
        json.dumps(
            {
                "vocab_size": 300,
                "hidden_size": 8,
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "max_position_embeddings": 4096,
                "architectures": ["X"],
            }
        )
    )
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2}]})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))


_INDEXED: tuple[Any, ...] = (
    "../x.safetensors", "/etc/passwd", "", "no.safetensors", LONG, "a\0", 7, None, "model.safetensors",
)  # fmt: skip
"""Names that an index of weights may hold."""
_KEYS = (
    "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "text_config",
    "auto_map", "temperature", "skill",
)  # fmt: skip
"""Settings of a model that get an odd value."""
_ODD_JSON = (
    b"[" * 100_000, b'{"a":' * 5000, b"[" + b"[]," * 3_000_000 + b"1]", b"{", b"[]", b"7", b'{"model": 3}',
    b'{"skill": NaN}',
)  # fmt: skip
"""Contents of a JSON file that are bombs, or of another form."""


def spoil_model(folder: Path, rng: random.Random) -> None:
    """Change one or two things of a model folder: kinds of files, bytes, headers, indexes, sizes, numbers."""
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice(sorted(folder.iterdir()))
        kind = rng.randrange(8)
        if kind == 0:
            _other_kind(path, rng)
        elif kind == 1 and _is_file(path):
            path.write_bytes(odd_bytes(path.read_bytes(), rng))
        elif kind in (2, 3):
            _write(folder / "model.safetensors", odd_header(rng))
        elif kind == 4:
            names = rng.choice(_INDEXED)
            _write(
                folder / "model.safetensors.index.json",
                json.dumps({"weight_map": {"weight": names}}).encode(),
            )
        elif kind == 5:
            with (folder / "big.json").open("wb") as handle:
                handle.truncate(rng.choice((1 << 20, 300 << 20, 5 << 30)))
            if not path.is_dir():
                (folder / "big.json").replace(path)
        elif kind == 6 and _is_file(path) and path.suffix == ".json":
            _write(path, rng.choice(_ODD_JSON))
        else:
            key = rng.choice(_KEYS)
            odd_value: Any = rng.choice(
                (0, -1, True, 1e308, 10**300, "x", [], {}, None, [1, "a"], 5e-324, {"a": [LONG]})
            )
            target = rng.choice(("config.json", "generation_config.json", "fake_policy.json"))
            _write(folder / target, json.dumps({key: odd_value}).encode())


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size < 1 << 20


def _write(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        return
    path.unlink(missing_ok=True)  # never into a pipe or through a link
    path.write_bytes(content)


def _other_kind(path: Path, rng: random.Random) -> None:
    if path.is_dir() and not path.is_symlink():
        return
    path.unlink()
    kind = rng.randrange(9)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(path.parent)
            listener.bind(path.name)
    elif kind <= 7:
        path.symlink_to(
            (
                "/dev/zero",
                "/dev/null",
                "/dev/stdin",
                path.name,
                "/nowhere/at/all",
                "/proc/self/mem",
            )[kind - 3 + (rng.random() < 0.2)]
        )


def odd_header(rng: random.Random) -> bytes:
    """A safetensors file whose header lies."""
    good = {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}
    odd: Any = copy.deepcopy(good)
    key = rng.choice(sorted(odd))
    odd[key] = rng.choice(
        (
            None,
            -1,
            [-1],
            [0, -1],
            [1e30],
            [2**63, 2**63],
            [0, 2**64],
            "F128",
            [True],
            [[0]],
            {},
            [4, 8],
            [0] * 100,
        )
    )
    header: Any = rng.choice(
        (
            {"weight": odd},
            {"weight": good, "more": odd},
            [],
            7,
            {"__metadata__": 3, "weight": good},
            {"weight": good, "again": good},
        )
    )
    text = json.dumps(header).encode()
    if rng.random() < 0.2:
        text = text[:-1] + b', "weight": ' + json.dumps(good).encode() + b"}"
    length = rng.choice((len(text),) * 6 + (0, 1, 2**31, 2**63, len(text) + 1000))
    return length.to_bytes(8, "little") + text + b"\0" * 32
