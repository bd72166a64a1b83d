"""Chat formats for tests of templates: any template over a small byte-level tokenizer, and those of packages."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.chat_formats import TEMPLATES, TEXT
from workers.rollout.chat.chat_settings import ChatSettings
from workers.rollout.chat.tokenizer_chat import TokenizerChat

MARKS = (
    *(
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
    ),
    *("<s>", "</s>", "<tool_call>", "</tool_call>"),
)
"""Control tokens of every tokenizer that `tokenizer_with` makes."""


@cache
def _trained() -> str:
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    built = Tokenizer(BPE())
    built.pre_tokenizer = ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    built.train_from_iterator([TEXT], trainer)
    return str(built.to_str())


def tokenizer_with(
    template: str, *, marks: Iterable[str] = MARKS, eos: str = "<|im_end|>", adds_bos: bool = False
) -> Any:
    """A transformers tokenizer under a chat template; with `adds_bos`, it puts `<s>` before what it encodes."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer.from_str(_trained())
    built.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in marks])
    if adds_bos:
        special = [("<s>", built.token_to_id("<s>"))]
        built.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
    found = PreTrainedTokenizerFast(tokenizer_object=built, eos_token=eos, bos_token="<s>")
    found.chat_template = template
    return found


def chat_with(template: str, settings: ChatSettings | None = None, **options: Any) -> TokenizerChat:
    """A chat format under a template."""
    return TokenizerChat(tokenizer_with(template, **options), settings=settings or ChatSettings())


def of_tests(name: str) -> str:
    """A template of `tests/support/chat_templates`."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def of_packages() -> dict[str, str]:
    """The chat templates that TRL and vLLM bring, by package and name; read without importing the packages."""
    found = {}
    for package, under in (
        ("trl", "chat_templates"),
        ("vllm", "transformers_utils/chat_templates"),
    ):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        for path in sorted((Path(spec.submodule_search_locations[0]) / under).glob("*.jinja")):
            found[f"{package}:{path.stem}"] = path.read_text(encoding="utf-8")
    return found


def write_model(folder: Path, tokenizer: Any) -> Path:
    """A model folder that `pawl plan` can look at: a real tokenizer, weights of a few bytes."""
    import struct

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(16)
    (folder / "model.safetensors").write_bytes(weights)
    sizes = {"max_position_embeddings": 4096, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "hidden_size": 32, "vocab_size": len(tokenizer)}
    (folder / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    return folder
