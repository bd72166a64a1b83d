"""Tries a chat template with made-up conversations before a run: what the policy must read has to be in the text.

A template may ignore a role, ignore its `tools`, or rewrite what was said, and raises nothing: the policy would act
blindly, and every trajectory would look complete.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from policies.base.errors import ConfigurationError, RolloutError, explain
from policies.base.records import Message, Prompt
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.chat.transcript import (
    RewrittenHistory,
    RewrittenHistoryError,
    Transcript,
    open_prompt,
)

TEMPLATE = "policy.model (its chat template)"
_SAID = ("pawl answers", "<think>\npawl thinks\n</think>\n\npawl answers")
"""Policy turns that are tried on a template; some templates take the thoughts out of earlier turns."""
_WORD = re.compile(r"\w+")
_MAX_ROLES = 8


@dataclass(frozen=True)
class Conversation:
    """Contents that a strategy puts into a conversation, for trying the template."""

    observation: tuple[Message, ...]
    """Messages of the roles that counterparts answer with."""
    tools: tuple[dict[str, Any], ...] = ()
    """Schemas that counterparts give to the chat template."""
    opening: tuple[Message, ...] = ()
    """Messages of the roles that counterparts begin with, after the prompt."""
    call_words: tuple[str, ...] = ()
    """Texts that a policy must have read to write its calls as they are parsed."""
    rewritten_history: RewrittenHistory = "auto"
    where: str = "rollout.strategy"
    """Where the strategy is set."""


class _RefusedError(Exception):
    """A probe failed: what is wrong, the value, where it is set."""

    def __init__(self, what: str, value: str, where: str) -> None:
        super().__init__(what)
        self.what, self.value, self.where = what, value, where


def check_prompt(chat: ChatFormat, prompt: Prompt) -> None:
    """Refuse a prompt that the template refuses, or of which it leaves a message or a tool out.

    Raises:
        ConfigurationError: with the template's own words, and a setting that was tried and helps.
    """
    try:
        _try_prompt(chat, prompt)
    except _RefusedError as error:
        fix = _remedy(chat, lambda other, _: _try_prompt(other, prompt), "")
        raise _explained(error, fix) from error


def check_conversation(chat: ChatFormat, tried: Conversation) -> str | None:
    """Refuse a template that cannot carry the strategy's conversations; returns how it rewrites earlier turns, if so.

    Two policy turns with an observation after each, once with thoughts and once without.

    Raises:
        ConfigurationError: an observation, an opening or a tool is not in what the policy reads, the template refuses
            the messages, or it rewrites earlier turns and the strategy is told to refuse that. The setting that it
            names was tried and helps.
    """
    try:
        return _try_conversation(chat, tried)
    except _RefusedError as error:

        def again(other: ChatFormat, as_user: bool) -> None:
            _try_conversation(other, _as_user(tried) if as_user else tried)

        from_tools = any(m.role == "tool" for m in tried.observation)
        raise _explained(error, _remedy(chat, again, tried.where if from_tools else "")) from error


def foreign_calls(chat: ChatFormat, tried: Conversation) -> tuple[str, ...]:
    """Those of `call_words` that the template does not write where it tells of tools: it teaches other calls."""
    if not tried.tools:
        return ()
    _, text = open_prompt(chat, (Message(role="user", content="pawl asks"),), tried.tools)
    return tuple(word for word in tried.call_words if word not in text)


def _try_prompt(chat: ChatFormat, prompt: Prompt) -> None:
    roles = [message.role for message in prompt.messages]
    words = [f"pawlword{n}x" for n in range(len(roles))]
    messages = [
        m.model_copy(update={"content": word})
        for m, word in zip(prompt.messages, words, strict=True)
    ]
    tools = _renamed(prompt.tools)
    value, where = f"prompt {prompt.id}", f"{TEMPLATE} and prompts"
    try:
        _, text = open_prompt(chat, messages, tools)
    except RolloutError as error:
        what = f"the model's chat template refuses prompts with the roles {_listed(roles)}: {error}"
        raise _RefusedError(what, value, where) from error
    lost = [role for role, word in zip(roles, words, strict=True) if word not in text]
    if lost:
        raise _RefusedError(
            f"the model's chat template does not show messages in the role {' or '.join(sorted(set(lost)))}: the "
            "policy would never read them",
            value,
            where,
        )
    _check_told(prompt.tools, tools, text, "prompts (their tools)")


def _try_conversation(chat: ChatFormat, tried: Conversation) -> str | None:
    return next(filter(None, [_try_turns(chat, tried, said) for said in _SAID]), None)


def _try_turns(chat: ChatFormat, tried: Conversation, said: str) -> str | None:
    roles = sorted({m.role for m in (*tried.opening, *tried.observation)})
    tools = _renamed(tried.tools)
    where = f"{TEMPLATE} and {tried.where}"
    try:
        transcript = Transcript(
            chat,
            (Message(role="user", content="pawl asks"), *tried.opening),
            tools,
            rewritten_history=tried.rewritten_history,
        )
        opened = chat.decode(transcript.token_ids)
        _check_told(tried.tools, tools, opened, tried.where)
        read = [(message, opened) for message in tried.opening]
        for _ in range(2):
            transcript.said(chat.encode(said), said)
            text = chat.decode(transcript.observed(tried.observation))
            read += [(message, text) for message in tried.observation]
    except RewrittenHistoryError as error:
        what = "the model's chat template does not go on from what was sampled"
        raise _RefusedError(what, str(error), f"{where}.rewritten_history") from error
    except RolloutError as error:
        what = (
            f"the model's chat template cannot show observations in the role {' or '.join(roles)}"
        )
        raise _RefusedError(what, str(error), where) from error
    for message, text in read:
        if not _is_read(message.content, text):
            raise _RefusedError(
                f"the model's chat template does not show observations in the role {message.role}: the policy would "
                "never read them",
                text[-120:],
                where,
            )
    return transcript.rewritten


def _check_told(
    given: Sequence[dict[str, Any]], renamed: Sequence[dict[str, Any]], text: str, where: str
) -> None:
    silent = [_name(a) for a, b in zip(given, renamed, strict=True) if _name(b) not in text]
    if silent:
        raise _RefusedError(
            "the model's chat template does not tell the policy of its tools",
            ", ".join(silent),
            f"{TEMPLATE} and {where}",
        )


def _remedy(
    chat: ChatFormat, again: Callable[[ChatFormat, bool], None], calls_of: str
) -> str | None:
    """The smallest change of settings with which the template carries it, found by trying; None when there is none.

    Args:
        chat: what failed.
        again: the probe; with True, observations come in the role user.
        calls_of: where the strategy is set whose calls can be told to observe in the role user; empty when none can.
    """
    now = chat.settings
    tools, roles = {"tools": "text"}, {"roles": "user_only"}
    for change, as_user in (
        *((({}, True),) if calls_of else ()),
        (tools, False),
        *(((tools, True),) if calls_of else ()),
        (roles, False),
        (tools | roles, False),
    ):
        try:
            again(chat.configured(now.model_copy(update=change)), as_user)
        except _RefusedError:
            continue
        told = [f"{calls_of}.calls.observation_role: user"] if as_user else []
        told += [f"rollout.template_{name}: {value}" for name, value in change.items()]
        return f"set {' and '.join(told)}"
    return None


def _explained(error: _RefusedError, fix: str | None) -> ConfigurationError:
    if error.where.endswith("rewritten_history"):
        refused = "to 'auto' or 'keep'" if "rewrites" in error.value else ""
        place = error.where.rpartition(" and ")[2]
        fix = f"set {place} {refused}" if refused else fix
    otherwise = "give the model folder a chat template that shows all turns, roles and tools, or another model"
    return ConfigurationError(
        explain(error.what, value=error.value, where=error.where, fix=fix or otherwise)
    )


def _as_user(tried: Conversation) -> Conversation:
    """The same with what tools answer in the role user."""
    return replace(
        tried,
        observation=tuple(m.model_copy(update={"role": "user"}) for m in tried.observation[:1]),
    )


def _renamed(tools: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The schemas under names that stand nowhere else, so that finding one in a text means that it was told."""
    found = []
    for number, tool in enumerate(tools):
        renamed = copy.deepcopy(tool)
        holder = renamed.get("function", renamed)
        if isinstance(holder, dict) and "name" in holder:
            holder["name"] = f"pawltool{number}x"
        found.append(renamed)
    return tuple(found)


def _name(tool: dict[str, Any]) -> str:
    holder = tool.get("function", tool)
    return str(holder.get("name", "")) if isinstance(holder, dict) else ""


def _is_read(content: str, text: str) -> bool:
    """Tell whether the words of `content` stand in `text` in their order, whatever the template wrote around them."""
    place = 0
    for word in _WORD.findall(content):
        place = text.find(word, place)
        if place < 0:
            return False
        place += len(word)
    return True


def _listed(roles: Sequence[str]) -> str:
    more = ", ..." if len(roles) > _MAX_ROLES else ""
    return ", ".join(roles[:_MAX_ROLES]) + more
