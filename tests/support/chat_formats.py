"""Small real tokenizers under the chat templates of `tests/support/chat_templates`, one per family."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from workers.rollout.chat.tokenizer_chat import TokenizerChat

TEMPLATES = Path(__file__).parent / "chat_templates"
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CONTROLS = {
    "chatml": CHATML,
    "chatml_tools": CHATML,
    "llama3": (
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|end_of_text|>",
    ),
    "gemma": ("<bos>", "<end_of_turn>", "<start_of_turn>", "<eos>"),
    "mistral": ("<s>", "</s>", "[INST]", "[/INST]"),
    "phi": ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|endoftext|>"),
    "deepseek": (
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜tool▁output▁begin｜>",
        "<｜tool▁output▁end｜>",
    ),
}
"""Control tokens of each family that keeps its history."""
REWRITING = ("thoughts_dropped", "thought_opened", "last_turn_only")
END = {
    "chatml": "<|im_end|>",
    "chatml_tools": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "phi": "<|end|>",
    "deepseek": "<｜end▁of▁sentence｜>",
}
"""What the template writes after a policy turn."""
_OTHER_EOS = {"chatml": "<|endoftext|>", "llama3": "<|end_of_text|>", "gemma": "<eos>"}
"""Families whose tokenizer names another end-of-sequence token than the one that ends a turn."""
TEXT = (
    "You solve problems with Python. Write a code block, read its output, then give the answer.\n"
    "What is 57 times 83 plus 6? ```python\nprint(57 * 83 + 6)\n``` Output: 4737 The answer is 4737.\n\n"
    "<tool_call> {name, arguments} </tool_call> user assistant system tool model  12345 67890\n"
)


@cache
def chat_of(family: str) -> TokenizerChat:
    """The chat format of one family; a byte-level BPE with about 400 tokens."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    controls = CONTROLS.get(family, CHATML)
    built = Tokenizer(BPE())
    built.pre_tokenizer = ByteLevel(add_prefix_space=False)
    built.decoder = ByteDecoder()
    built.train_from_iterator(
        [TEXT],
        BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet(), show_progress=False),
    )
    built.add_special_tokens([AddedToken(c, normalized=False, special=True) for c in controls])
    eos = _OTHER_EOS.get(family, END.get(family, "<|im_end|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, eos_token=eos)
    tokenizer.chat_template = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    return TokenizerChat(tokenizer)


def control_ids(chat: TokenizerChat) -> frozenset[int]:
    """Ids of the control tokens."""
    return frozenset(chat.tokenizer.convert_tokens_to_ids(list(chat.controls)))
