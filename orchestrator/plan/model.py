"""What a model directory says about itself, read from headers and JSON only: no torch, no weights loaded."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.errors import InputError

_MAX_HEADER = 100 << 20
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model, and what is wrong with its files."""

    path: Path
    parameters: int
    weight_bytes: int
    config: dict[str, Any]
    has_tokenizer: bool
    has_chat_template: bool
    tokenizer_size: int | None
    """Tokens that the tokenizer knows, where that can be read."""
    problems: list[str] = field(default_factory=list)

    @property
    def context_tokens(self) -> int | None:
        """Longest sequence that the model was made for."""
        value = self._text_config.get("max_position_embeddings")
        return value if isinstance(value, int) else None

    @property
    def attention_heads(self) -> int | None:
        value = self._text_config.get("num_attention_heads")
        return value if isinstance(value, int) else None

    @property
    def vocabulary(self) -> int | None:
        value = self._text_config.get("vocab_size")
        return value if isinstance(value, int) else None

    @property
    def needs_remote_code(self) -> bool:
        return bool(self.config.get("auto_map"))

    def cache_bytes_per_token(self, dtype: str) -> int:
        """Keys and values of one token over all layers; 0 when the config does not say."""
        c = self._text_config
        layers, heads, hidden = (
            c.get(k) for k in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        if not (
            isinstance(layers, int) and isinstance(heads, int) and isinstance(hidden, int) and heads
        ):
            return 0
        kv_heads, head_dim = (
            c.get("num_key_value_heads") or heads,
            c.get("head_dim") or hidden // heads,
        )
        return 2 * layers * int(kv_heads) * int(head_dim) * _DTYPE_BYTES[dtype]

    def bytes_as(self, dtype: str) -> int:
        """Size of all weights in another number format."""
        return self.parameters * _DTYPE_BYTES[dtype]

    @property
    def _text_config(self) -> dict[str, Any]:
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config


def read_model(path: Path) -> ModelFacts:
    """Read the facts of a model directory.

    Raises:
        InputError: a weight file is not safetensors.
    """
    problems: list[str] = []
    parameters, num_bytes = 0, 0
    for file in sorted(path.glob("*.safetensors")):
        count, expected = safetensors_size(file)
        actual = file.stat().st_size
        if actual < expected:
            problems.append(
                f"{file} is cut off (got {actual} of {expected} bytes). Set by: policy.model. Fix: copy or "
                "download it again"
            )
        parameters += count
        num_bytes += actual
    tokenizer = _json(path / "tokenizer.json")
    settings = _json(path / "tokenizer_config.json")
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
    return ModelFacts(
        path=path,
        parameters=parameters,
        weight_bytes=num_bytes,
        config=_json(path / "config.json"),
        has_tokenizer=any((path / n).is_file() for n in names),
        has_chat_template=bool(settings.get("chat_template"))
        or any((path / n).is_file() for n in ("chat_template.jinja", "chat_template.json")),
        tokenizer_size=_tokenizer_size(tokenizer),
        problems=problems,
    )


def adapter_base(path: Path) -> str:
    """The base model that an adapter's directory names; empty when it is no adapter."""
    return str(_json(path / "adapter_config.json").get("base_model_name_or_path", ""))


def safetensors_size(file: Path) -> tuple[int, int]:
    """Number of parameters and expected size in bytes of a safetensors file, from its header.

    Raises:
        InputError: the header cannot be read.
    """
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > _MAX_HEADER:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(handle.read(length))
        tensors = [v for k, v in header.items() if k != "__metadata__"]
        end = max((int(t["data_offsets"][1]) for t in tensors), default=0)
        return sum(math.prod(t["shape"]) for t in tensors), 8 + int(length) + end
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        struct.error,
    ) as error:
        raise InputError(
            f"{file} is not a whole safetensors file ({error}). Set by: policy.model. Fix: copy "
            "or download it again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _tokenizer_size(tokenizer: dict[str, Any]) -> int | None:
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        return None
    added = tokenizer.get("added_tokens")
    ids = [t.get("id", 0) for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    return max([*vocabulary.values(), *ids], default=-1) + 1
