"""A scripted engine: no model, no torch, the same tokens for the same seed on every machine.

It is shipped for tests, for trying a config, and as the smallest example of an engine. It speaks bytes:
token ids are UTF-8 bytes, 256 is the terminator. What it knows is one number, `skill`, read from
`fake_policy.json` beside the weights: the share of arithmetic questions that it answers rightly. The
fake training engine raises it. Where a system message speaks of Python, `skill` is the share of its turns that
are a block of code, and once it has read "Output: N" it answers N.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pydantic import Field

from policies.base.bounds import MAX_SECONDS, MAX_TOKENS
from policies.base.component import Component
from policies.base.errors import RolloutError
from policies.base.records import Message, PolicyVersion, StopReason
from policies.base.requirements import Hosting, Requirements
from policies.base.seeds import derive_rng
from policies.storage.fake_model import FAKE_POLICY, read_skill
from policies.storage.policy_store import check_files
from workers.cluster.heartbeat import report_progress
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.engine import BatchEngine, Generation, GenerationRequest

TERMINATOR = 256
_END = "</assistant>"
_QUESTION = re.compile(r"(-?\d+)\s*(times|plus|minus|\*|\+|-)\s*(-?\d+)")
_CHAIN = re.compile(r"-?\d+(?:\s*(?:times|plus|minus|[*+-])\s*-?\d+)+")
_WORDS = {"times": "*", "plus": "+", "minus": "-"}
_PYTHON = re.compile(r"<system>[^<]*\bPython\b")
_OUTPUT = re.compile(r"Output:\s*(-?\d+)")


class FakeChat(ChatFormat):
    """Roles as tags; a policy turn ends with the terminator, which is written `</assistant>`."""

    terminators = frozenset({TERMINATOR})
    controls = (_END,)

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, object]] = (),
        *,
        generation_prompt: bool,
    ) -> str:
        told = f"<tools>{json.dumps(list(tools))}</tools>" if tools else ""
        opening = "<assistant>" if generation_prompt else ""
        said = "".join(f"<{m.role}>{m.full_text}</{m.role}>" for m in messages)
        return told + said + opening

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        if not special:
            return tuple(text.encode())
        first, *rest = text.split(_END)
        return (*first.encode(), *(i for part in rest for i in (TERMINATOR, *part.encode())))

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(i for i in token_ids if i != TERMINATOR).decode(errors="replace")


class FakeEngine(BatchEngine):
    """Answers arithmetic questions rightly with probability `skill`, else off by a little."""

    class Config(Component.Config):
        """Settings of the script."""

        seconds_per_call: float = Field(default=0.0, ge=0, le=MAX_SECONDS)
        """Sleep in each call, to look like work."""
        seconds_per_token: float = Field(default=0.0, ge=0, le=MAX_SECONDS)
        """Sleep for each token of a batch's longest answer, as decoding a batch takes."""
        max_context: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
        """Most bytes of prompt and completion together; null is no limit."""
        fail_prompts_matching: str | None = None
        """Regular expression: generating for a prompt that it matches raises, as a broken engine would."""

        def requires(self) -> Requirements:
            """No GPU and no tokenizer: it follows its script."""
            usual = super().requires()
            script = (usual.hosting or Hosting()).model_copy(update={"gpus": 0, "scripted": True})
            return usual + Requirements(hosting=script)

    def __init__(
        self,
        config: Component.Config,
        *,
        policy: PolicyVersion,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = cast(FakeEngine.Config, config)
        self.chat = FakeChat()
        self.max_context = self.config.max_context
        self.load_policy(policy)

    def load_policy(self, policy: PolicyVersion) -> None:
        check_files(policy)
        path = Path(policy.path) / FAKE_POLICY
        if not path.is_file():
            raise RolloutError(
                f"the fake engine serves fake policies only: {path} does not exist. "
                "Fix: make one with policies.storage.fake_model.write_fake_model, or use another "
                "rollout.engine"
            )
        self.skill = read_skill(Path(policy.path))
        self.serving = policy

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        if self.config.seconds_per_call:
            time.sleep(self.config.seconds_per_call)
        answers = [self._one(request) for request in requests]
        if self.config.seconds_per_token:
            time.sleep(self.config.seconds_per_token * max(len(a.token_ids) for a in answers))
        report_progress(tokens=sum(len(answer.token_ids) for answer in answers))
        return answers

    def _one(self, request: GenerationRequest) -> Generation:
        ids = request.prompt_token_ids
        prompt = self.chat.decode(ids)
        pattern = self.config.fail_prompts_matching
        if pattern is not None and re.search(pattern, prompt):
            raise RolloutError(f"the fake engine was told to fail on prompts matching {pattern!r}")
        rng = derive_rng(0, request.seed, self.serving.digest)  # the same on every worker
        if request.choices:
            return _said(rng.choice(request.choices))
        words = rng.choice(["It is ", "The answer is ", "", "That makes "])
        text = f"{words}{self._answer(prompt, rng.random(), rng.randint(1, 9))}."
        if _PYTHON.search(prompt):
            last = len(ids) - 1 - ids[::-1].index(TERMINATOR) if TERMINATOR in ids else -1
            text = self._with_python(self.chat.decode(ids[last + 1 :]), rng.random()) or text
        sampled = [*text.encode(), TERMINATOR]
        stops = [text.index(s) + len(s) for s in request.sampling.stop if s in text]
        if stops:
            text = text[: min(stops)]
            sampled = list(text.encode())
        stop = StopReason.STOP
        if len(sampled) > request.sampling.max_tokens:
            sampled = sampled[: request.sampling.max_tokens]
            text = self.chat.decode(sampled)
            stop = StopReason.LENGTH
        logprobs = tuple(-round(rng.random(), 6) for _ in sampled)
        return Generation(token_ids=tuple(sampled), logprobs=logprobs, text=text, stop_reason=stop)

    def _with_python(self, unread: str, luck: float) -> str | None:
        """A block of code, or what its output says; `unread` is what stands behind the last policy turn."""
        outputs = _OUTPUT.findall(unread)
        if outputs:
            return f"The answer is {outputs[-1]}."
        questions = _CHAIN.findall(unread)
        if not questions or luck >= self.skill:
            return None
        code = re.sub("|".join(_WORDS), lambda word: _WORDS[word[0]], questions[-1])
        return f"```python\nprint({code})\n```"

    def _answer(self, prompt: str, luck: float, error: int) -> int:
        questions = _QUESTION.findall(prompt)
        if not questions:
            return error
        left, operation, right = questions[-1]
        a, b = int(left), int(right)
        results = {
            "times": a * b,
            "*": a * b,
            "plus": a + b,
            "+": a + b,
            "minus": a - b,
            "-": a - b,
        }
        return results[operation] + (0 if luck < self.skill else error)


def _said(text: str) -> Generation:
    """A fixed text as a generation."""
    ids = (*text.encode(), TERMINATOR)
    return Generation(
        token_ids=ids, logprobs=(0.0,) * len(ids), text=text, stop_reason=StopReason.STOP
    )
