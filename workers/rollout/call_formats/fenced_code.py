"""A fenced code block in the turn is a call: the format of tool-integrated reasoning (ToRA, Xiong et al. 2409.02392).

    Let me compute it.
    ```python
    print(57 * 83 + 6)
    ```

calls the tool `python` with `{"code": "print(57 * 83 + 6)"}`; a turn without such a block is the final answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from policies.base.bounds import MAX_COUNT
from policies.base.component import Component
from policies.base.records import Message
from workers.rollout.call_format import CallFormat, Parsed, RequestedCall
from workers.rollout.tool import ToolOutput

_FENCE = re.compile(r"`{3,}")


class _UnreadableError(Exception):
    """The turn has something like a code block that cannot be run; the text says why."""


class FencedCode(CallFormat):
    """Every closed block of one of the languages is one call, in order; blocks of other languages are text.

    A block opens with three backticks or more and the language, at the end of a line, and closes with as many
    backticks or more at the start of a line or right after the code. Reading takes time linear in the text.
    """

    class Config(Component.Config):
        """Settings of `fenced_code`."""

        tool: str = "python"
        """Name of the tool that gets the code."""
        argument: str = "code"
        """Under which name the tool gets it."""
        languages: tuple[str, ...] = Field(default=("python", "py", "python3"), min_length=1)
        """Words after the opening backticks that make a block a call, in any case."""
        max_blocks: int = Field(default=4, ge=1, le=MAX_COUNT)
        """Most blocks in one turn; more are a problem that the policy is told of."""
        prefix: str = "Output: "
        """Put before the output of each block."""
        observation_role: Literal["user", "tool"] = "user"
        """Role of the message with the outputs; `tool` needs a chat template that has it."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._languages = frozenset(language.casefold() for language in config.languages)

    def parse(self, text: str) -> Parsed:
        calls: list[RequestedCall] = []
        try:
            for code in self._blocks(text):
                if len(calls) == self.config.max_blocks:
                    raise _UnreadableError(
                        f"more than {self.config.max_blocks} code blocks in one turn"
                    )
                calls.append(RequestedCall(self.config.tool, {self.config.argument: code}))
        except _UnreadableError as error:
            return Parsed(problem=f"{error}. Write {self._wanted()}.")
        return Parsed(tuple(calls))

    def messages(self, results: Sequence[tuple[str, ToolOutput]]) -> tuple[Message, ...]:
        content = "\n".join(f"{self.config.prefix}{output.text}" for _, output in results)
        return (Message(role=self.config.observation_role, content=content),)

    def _wanted(self) -> str:
        return f"one block: a line ```{self.config.languages[0]}, then the code, then a line ```"

    def _blocks(self, text: str) -> Iterator[str]:
        code: list[str] | None = None  # lines of the block of ours that is open
        opening = 0  # backticks that opened the block, ours or foreign, that is open
        for raw in text.split("\n"):
            line = raw.removesuffix("\r")
            before, length, info = _fence_of(line)
            if length < max(opening, 3):
                if code is not None:
                    code.append(line)
            elif code is None:
                if self._is_ours(info):
                    code, opening = [], length
                else:
                    opening = length if info and "`" not in info and not opening else 0
            elif before.strip() and info:  # backticks within a line of the code
                code.append(line)
            elif self._names_ours(info):
                raise _UnreadableError("a code block opens inside another")
            else:
                yield _checked("\n".join([*code, before] if before.strip() else code))
                code, opening = None, 0
        if code is not None:
            raise _UnreadableError("the code block is not closed")

    def _names_ours(self, info: str) -> bool:
        word = info.split(maxsplit=1)[0] if info else ""
        return word.casefold() in self._languages

    def _is_ours(self, info: str) -> bool:
        if not self._names_ours(info):
            return False
        if " " in info or "`" in info:
            raise _UnreadableError("the code must begin on a line of its own")
        return True


def _fence_of(line: str) -> tuple[str, int, str]:
    """Return what stands before the first run of three backticks or more, its length (0: none), and what follows it."""
    found = _FENCE.search(line) if "```" in line else None  # most lines have none: 6 times faster
    if found is None:
        return line, 0, ""
    return line[: found.start()], found.end() - found.start(), line[found.end() :].strip()


def _checked(code: str) -> str:
    if not code.strip():
        raise _UnreadableError("the code block is empty")
    return code
