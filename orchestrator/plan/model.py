"""Facts that a model directory says about itself, read from headers and JSON only: no torch, no weights loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, TypeGuard

from policies.storage.bounded_json import read_json
from policies.storage.model_folder import MAX_VOCABULARY_BYTES, check_folder
from policies.storage.safetensors_header import read_header

MAX_SIZE = 10**9
"""Largest count that a model's config may state: of layers, heads, tokens."""
_COUNTS = (
    "max_position_embeddings", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "hidden_size",
    "intermediate_size", "head_dim", "vocab_size",
)  # fmt: skip
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
        return self._count("max_position_embeddings")

    @property
    def attention_heads(self) -> int | None:
        return self._count("num_attention_heads")

    @property
    def vocabulary(self) -> int | None:
        return self._count("vocab_size")

    @property
    def needs_remote_code(self) -> bool:
        return bool(self.config.get("auto_map"))

    def cache_bytes_per_token(self, dtype: str) -> int:
        """Keys and values of one token over all layers; 0 when the config does not say."""
        layers, heads, hidden = map(
            self._count, ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        if not (layers and heads and hidden):
            return 0
        kv_heads = self._count("num_key_value_heads") or heads
        head_dim = self._count("head_dim") or hidden // heads
        return 2 * layers * kv_heads * head_dim * _DTYPE_BYTES[dtype]

    def bytes_as(self, dtype: str) -> int:
        """Size of all weights in another number format."""
        return self.parameters * _DTYPE_BYTES[dtype]

    def _count(self, name: str) -> int | None:
        """A size that the config states; None where it states none, or something that is no size."""
        value = self._text_config.get(name)
        return value if _is_size(value) else None

    @property
    def _text_config(self) -> dict[str, Any]:
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config


def read_model(path: Path) -> ModelFacts:
    """Read the facts of a model directory.

    Raises:
        InputError: a weight file is not safetensors, or a name of a file stands for something else.
    """
    check_folder(path)
    problems: list[str] = []
    parameters, num_bytes = 0, 0
    seen: dict[str, Path] = {}
    for file in sorted(path.glob("*.safetensors")):
        count, expected, tensors = read_header(file)
        twice = sorted(tensors & seen.keys())
        if twice:
            problems.append(
                f"tensor {twice[0][:80]!r} is in two weight files (got {seen[twice[0]].name} and {file.name}). Set by: "
                "policy.model. Fix: remove the file that does not belong to the model"
            )
        seen.update(dict.fromkeys(tensors, file))
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
    config = _json(path / "config.json")
    problems += _odd_sizes(path / "config.json", config)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
    return ModelFacts(
        path=path,
        parameters=parameters,
        weight_bytes=num_bytes,
        config=config,
        has_tokenizer=any((path / n).is_file() for n in names),
        has_chat_template=bool(settings.get("chat_template"))
        or any((path / n).is_file() for n in ("chat_template.jinja", "chat_template.json")),
        tokenizer_size=_tokenizer_size(tokenizer),
        problems=problems,
    )


def adapter_base(path: Path) -> str:
    """The base model that an adapter's directory names; empty when it is no adapter."""
    return str(_json(path / "adapter_config.json").get("base_model_name_or_path", ""))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, max_bytes=MAX_VOCABULARY_BYTES)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= MAX_SIZE


def _odd_sizes(path: Path, config: dict[str, Any]) -> list[str]:
    """Sizes in a config.json that no model can have; a list (one per layer) is left to the library."""
    inner = config.get("text_config")
    settings = inner if isinstance(inner, dict) else config
    return [
        f"{path} states a size that no model has (got {name}: {str(settings[name])[:60]}). Set by: policy.model. Fix: "
        "copy or download the model again"
        for name in _COUNTS
        if not isinstance(settings.get(name), (list, NoneType)) and not _is_size(settings[name])
    ]


def _tokenizer_size(tokenizer: dict[str, Any]) -> int | None:
    """Tokens that a tokenizer.json knows; None where it does not say, or something that is no number of a token."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        return None
    added = tokenizer.get("added_tokens")
    ids = [t.get("id", 0) for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    found = [*vocabulary.values(), *ids]
    return max(found, default=-1) + 1 if all(type(n) is int for n in found) else None
