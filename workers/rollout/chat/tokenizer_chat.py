"""Chat format of a Hugging Face model folder: its chat template, its tokenizer, its terminators."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from policies.base.attempt_answer import is_mark
from policies.base.errors import RolloutError, boundary
from policies.base.records import Message
from workers.rollout.chat.call_arguments import wants_text, with_arguments
from workers.rollout.chat.chat import ChatFormat, cuts, split_at
from workers.rollout.chat.chat_settings import (
    ChatSettings,
    as_user_only,
    in_parts,
    probe,
    with_tools_as_text,
)

logger = logging.getLogger(__name__)

_PROBE = "pawl-probe"
_QUESTION = probe("user", "pawl-question")
_ANSWER = probe("assistant", _PROBE)
_FOLLOWING = probe("user", "pawl-goes-on")
_TAGS = re.compile(
    r"[<\[]/?\|?/?(?:think|thinking|thought|tool_calls?|function_call)\|?[>\]]", re.IGNORECASE
)
_OWN_DAY = re.compile(r"date_string\s+(?:is|==|or|if)\b|date_string\s*\|\s*d(?:efault)?\b")
"""A template that looks whether it was given a date has one of its own."""
_NAMED = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


class TokenizerChat(ChatFormat):
    """Wraps a transformers tokenizer; `load` reads one from a model folder."""

    def __init__(
        self,
        tokenizer: Any,
        terminators: Iterable[int] = (),
        settings: ChatSettings = ChatSettings(),  # noqa: B008 # frozen
    ) -> None:
        """Wrap `tokenizer`.

        Args:
            tokenizer: any transformers tokenizer.
            terminators: ids besides those that the tokenizer and the template tell.
            settings: what the run says to the template.
        """
        self.tokenizer = tokenizer
        self.settings = settings
        self._extra = frozenset(terminators)
        # Read once: the day must not change under a conversation, whatever the clock does.
        self._day = datetime.fromisoformat(settings.date or datetime.now(UTC).date().isoformat())
        named = {tokenizer.eos_token_id, *self._extra} - {None}
        self.template = _template_text(tokenizer)
        added = tokenizer.added_tokens_decoder
        # A token that the template writes steers the model, whether or not it is marked special.
        self._control_ids = frozenset(
            i
            for i, token in added.items()
            if i != tokenizer.unk_token_id
            and (token.special or i in named or token.content in self.template)
            and token.content.strip()
        )
        self.controls = tuple(sorted({added[i].content for i in self._control_ids}))
        self._named = frozenset(int(i) for i in named)
        self._hidden_marks = frozenset(
            i for i, token in added.items() if token.special and is_mark(token.content)
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        trust_remote_code: bool = False,
        settings: ChatSettings = ChatSettings(),  # noqa: B008 # frozen
    ) -> TokenizerChat:
        """The chat format of the model in `path`."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(  # nosec B615 # a local folder
            str(path), trust_remote_code=trust_remote_code
        )
        return cls(tokenizer, _terminators_in(Path(path)), settings)

    def configured(self, settings: ChatSettings) -> TokenizerChat:
        return TokenizerChat(self.tokenizer, self._extra, settings)

    @cached_property
    def terminators(self) -> frozenset[int]:  # type: ignore[override]
        """End-of-sequence ids of the folder, and the control token that the template writes after a policy turn."""
        return self._named | self._first_control(self._after((), generation_prompt=False))

    @cached_property
    def closers(self) -> frozenset[int]:
        """Return what closes a turn, found by its place: it comes whether the user or the policy speaks next.

        The openers of messages are none, although end-of-sequence lists may hold them (GLM 4).
        """
        at_the_end = self._first_control(self._after((), generation_prompt=False))
        by_user = self._closing(self._after((_FOLLOWING,), generation_prompt=False))
        by_policy = self._closing(self._after((), generation_prompt=True))
        return at_the_end | (by_user & by_policy)

    @cached_property
    def spoken(self) -> frozenset[int]:  # type: ignore[override]
        """Special tokens for calls and thoughts: those that the template writes elsewhere than around messages."""
        names = {getattr(self.tokenizer, f"{name}_token_id", None) for name in _NAMED}
        around: set[int] = set()
        for said in ((_QUESTION,), (_QUESTION, _ANSWER), (_QUESTION, _ANSWER, _FOLLOWING)):
            around |= set(self.encode(self._tried(said, generation_prompt=True)))
        return frozenset(
            i
            for i, token in self.tokenizer.added_tokens_decoder.items()
            if i in self._special
            and i not in names | self.terminators | self.closers
            and (
                _TAGS.fullmatch(token.content)
                or (token.content in self.template and i not in around)
            )
        )

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, object]] = (),
        *,
        generation_prompt: bool,
    ) -> str:
        found = self._render(messages, tools, generation_prompt, parts=self._reads_parts)
        bos = self.added_bos if self.settings.bos else ""
        return bos + found if bos and not found.startswith(bos) else found

    @cached_property
    def added_bos(self) -> str:
        """The BOS token that the tokenizer puts before a plain text; empty where it adds none."""
        bos, text = self.tokenizer.bos_token_id, "pawl"
        if bos is None:
            return ""
        ids = list(self.tokenizer.encode(text, add_special_tokens=True))
        alone = list(self.tokenizer.encode(text, add_special_tokens=False))
        return str(self.tokenizer.bos_token) if ids[:1] == [bos] and alone[:1] != [bos] else ""

    @property
    def day(self) -> str:
        """The day that the template is told, YYYY-MM-DD."""
        return self._day.date().isoformat()

    @property
    def writes_bos(self) -> bool:
        """Tell whether prompts begin with the tokenizer's BOS token."""
        ids = self.encode(self._tried((_QUESTION,), generation_prompt=True))
        return self.tokenizer.bos_token_id in ids[:1]

    def samples(self) -> tuple[str, ...]:
        """Return what the template writes of made-up conversations: with and without system line, tools, thoughts."""
        thoughts = probe("assistant", f"<think>\npawl thinks\n</think>\n\n{_PROBE}")
        function = {"name": "pawl", "description": "pawl", "parameters": {"type": "object"}}
        schema: dict[str, object] = {"type": "function", "function": function}
        offers: tuple[tuple[dict[str, object], ...], ...] = ((), (schema,))
        found = []
        for messages in (
            (_QUESTION,),
            (probe("system", "pawl-system"), _QUESTION),
            (_QUESTION, thoughts, _FOLLOWING),
            (_QUESTION, thoughts, probe("tool", "pawl-tool")),
        ):
            for tools in offers:
                try:
                    found.append(self.text(messages, tools, generation_prompt=True))
                except RolloutError as error:
                    found.append(str(error))
        return tuple(found)

    @property
    def reads_date(self) -> bool:
        """Tell whether the template asks what day it is."""
        return "strftime_now" in self.template or "date_string" in self.arguments

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Variables that the template is given besides messages and tools."""
        clock: dict[str, Any] = {}
        if "strftime_now" in self.template:
            clock["strftime_now"] = self._day.strftime
        own = bool(_OWN_DAY.search(self.template)) and not self.settings.date_is_given
        if "date_string" in self.template and not own:
            clock["date_string"] = self._day.strftime("%d %b %Y")
        return clock | self.settings.template_arguments

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, object]],
        generation_prompt: bool,
        *,
        parts: bool,
    ) -> str:
        shown: list[dict[str, object]] = [m.model_dump() for m in messages]
        given: list[dict[str, object]] | None = list(tools) or None
        if given is not None and self.settings.tools == "text":
            lines = [json.dumps(tool, ensure_ascii=False) for tool in given]
            shown, given = with_tools_as_text(shown, given, lines), None
        if any(message.get("tool_calls") for message in shown):
            shown = with_arguments(shown, as_text=self._calls_as_text)
        if self.settings.roles == "user_only":
            shown = as_user_only(shown)
        return self._applied(in_parts(shown) if parts else shown, given, generation_prompt)

    @cached_property
    def _calls_as_text(self) -> bool:
        return wants_text(lambda messages: self._applied(messages, None, generation_prompt=False))

    def _applied(
        self,
        messages: list[dict[str, object]],
        tools: list[dict[str, object]] | None,
        generation_prompt: bool,
    ) -> str:
        with boundary(RolloutError, "the chat template refuses these messages"):
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=tools,
                    add_generation_prompt=generation_prompt,
                    tokenize=False,
                    **self.arguments,
                )
            )

    @cached_property
    def _reads_parts(self) -> bool:
        """Tell whether the template shows a text only when it comes in parts."""
        shows = []
        for parts in (False, True):
            try:
                text = self._render((_QUESTION,), (), True, parts=parts)
            except RolloutError:
                text = ""
            shows.append(text.count(_QUESTION.content) == 1 and "{'type'" not in text)
        return shows == [False, True]

    def _tried(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """The text of a made-up conversation; empty when the template cannot carry it."""
        if not self.template:
            return ""
        try:
            return self.text(messages, generation_prompt=generation_prompt)
        except RolloutError as error:
            # Not every template carries a finished turn; one-turn strategies do not need it.
            logger.info("the template was tried with a conversation that it refuses: %s", error)
            return ""

    def _after(self, following: Sequence[Message], *, generation_prompt: bool) -> str:
        """Return what the template writes behind a policy turn."""
        said = (_QUESTION, _ANSWER, *following)
        text = self._tried(said, generation_prompt=generation_prompt)
        _, found, after = text.partition(_PROBE)
        return after if found else ""

    def _first_control(self, text: str) -> frozenset[int]:
        """The control token that `text` begins with, space aside; nothing when it begins with none."""
        return frozenset(self.encode(text.lstrip())[:1]) & self._control_ids

    def _closing(self, text: str) -> frozenset[int]:
        """The control token that `text` begins with, when it stands alone: an opener is followed by a role."""
        found = self._first_control(text)
        rest = text.lstrip()[len(self.tokenizer.decode(list(found))) :].lstrip() if found else ""
        return found if not rest or self._first_control(rest) else frozenset()

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
        if self.spoken.isdisjoint(token_ids):
            return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
        special = set(self.tokenizer.all_special_ids) | self._special
        kept = [i for i in token_ids if i not in special or i in self.spoken]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special)

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
