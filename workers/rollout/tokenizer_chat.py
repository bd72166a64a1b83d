"""Chat format of a Hugging Face model folder: its chat template, its tokenizer, its terminators."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from policies.attempt_answer import is_mark
from policies.errors import RolloutError, boundary
from policies.records import Message
from workers.rollout.chat import ChatFormat, cuts, split_at

logger = logging.getLogger(__name__)

_PROBE = "pawl-probe"


class TokenizerChat(ChatFormat):
    """Wraps a transformers tokenizer; `load` reads one from a model folder."""

    def __init__(self, tokenizer: Any, terminators: Iterable[int] = ()) -> None:
        """Wrap `tokenizer`.

        Args:
            tokenizer: any transformers tokenizer.
            terminators: ids besides those that the tokenizer and the template tell.
        """
        self.tokenizer = tokenizer
        named = {tokenizer.eos_token_id, *terminators} - {None}
        self._template = _template_text(tokenizer)
        added = tokenizer.added_tokens_decoder
        # A token that the template writes steers the model, whether or not it is marked special.
        self._control_ids = frozenset(
            i
            for i, token in added.items()
            if i != tokenizer.unk_token_id
            and (token.special or i in named or token.content in self._template)
            and token.content.strip()
        )
        self.controls = tuple(sorted({added[i].content for i in self._control_ids}))
        self._named = frozenset(int(i) for i in named)
        self._hidden_marks = frozenset(
            i for i, token in added.items() if token.special and is_mark(token.content)
        )

    @classmethod
    def load(cls, path: str | Path, *, trust_remote_code: bool = False) -> TokenizerChat:
        """The chat format of the model in `path`."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(  # nosec B615 # a local folder
            str(path), trust_remote_code=trust_remote_code
        )
        return cls(tokenizer, _terminators_in(Path(path)))

    @cached_property
    def terminators(self) -> frozenset[int]:  # type: ignore[override]
        """End-of-sequence ids of the folder, and the control token that the template writes after a policy turn."""
        if not self._template:
            return self._named
        messages = (
            Message(role="user", content="pawl-question"),
            Message(role="assistant", content=_PROBE),
        )
        try:
            text = self.text(messages, generation_prompt=False)
        except RolloutError as error:
            # Not every template carries a finished turn; one-turn strategies do not need it.
            logger.info("terminators are those of the model's files alone: %s", error)
            return self._named
        _, found, after = text.rpartition(_PROBE)
        first = self.encode(after.lstrip())[:1] if found else ()
        return self._named | (set(first) & self._control_ids)

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, object]] = (),
        *,
        generation_prompt: bool,
    ) -> str:
        with boundary(RolloutError, "the chat template refuses these messages"):
            return str(
                self.tokenizer.apply_chat_template(
                    [m.model_dump() for m in messages],
                    tools=list(tools) or None,
                    add_generation_prompt=generation_prompt,
                    tokenize=False,
                )
            )

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        if not special:
            return self.encode_pieces(split_at(text, cuts(text, self.controls)))
        if not text:
            return ()
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_pieces(self, pieces: Sequence[str]) -> tuple[int, ...]:
        found: list[int] = []
        for piece in pieces:
            ids = self.encode(piece)
            spelled = len(self._spelled.findall(piece)) if self.controls else 0
            if sum(i in self._control_ids for i in ids) > spelled:
                # e.g. a tokenizer that lower-cases before it looks for control tokens
                raise RolloutError(
                    f"the tokenizer reads control tokens out of text that spells none: {piece[:80]!r}"
                )
            found.extend(ids)
        return tuple(found)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def spelled(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def hides_marks(self, token_ids: Sequence[int]) -> bool:
        return not self._hidden_marks.isdisjoint(token_ids)

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        """Finds control tokens as tokenizers do: leftmost, longest."""
        longest_first = sorted(self.controls, key=len, reverse=True)
        return re.compile("|".join(re.escape(control) for control in longest_first))


def _template_text(tokenizer: Any) -> str:
    """Source of the chat template, of all of them when there are several; empty when there is none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return "\n".join(template.values())
    return template or ""


def _terminators_in(folder: Path) -> set[int]:
    """`eos_token_id` of the model's generation config, or else of its config."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            if value is not None:
                return {int(i) for i in (value if isinstance(value, list) else [value])}
    return set()
