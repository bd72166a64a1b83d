"""The process that tries a model's chat template before a run: `python -m workers.rollout.preview_child FD PARENT_PID`.

Protocol: the parent sends one `Job` as a line of JSON, the child answers with one `Report`. Tokenizers, environments
and tools are loaded here and not in the driver: what they import, print, or never finish stays in this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import JsonValue

from policies.base.component import create
from policies.base.errors import ConfigurationError, PawlError, boundary
from policies.base.records import Prompt, Record
from workers.isolation.child_process import begin_as_child, clean_text, line_of, storable
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.chat.chat_settings import ChatSettings
from workers.rollout.chat.template_probe import check_prompt
from workers.rollout.chat.tokenizer_chat import TokenizerChat
from workers.rollout.strategy import STRATEGIES, RolloutStrategy

Verdict = Literal["ok", "warning", "problem"]
MAX_SHOWN = 1600
"""Characters of the first prompt that are shown: its beginning and its end."""


class StrategyToTry(Record):
    """A rollout strategy. Example: `StrategyToTry(where="rollout.strategy", config={"type": "independent"})`."""

    where: str
    config: dict[str, JsonValue]


class Job(Record):
    """The things to try. Example: `Job(model="/models/m", strategies=(...), prompts=(...))`."""

    model: str | None
    """The model's folder; None is the scripted fake."""
    trust_remote_code: bool = False
    chat: ChatSettings = ChatSettings()
    strategies: tuple[StrategyToTry, ...]
    prompts: tuple[Prompt, ...]
    """The first training prompt, and one of each other sequence of roles."""


class Finding(Record):
    """A line of the plan. Example: `Finding(what="chat template", found="...", verdict="warning")`."""

    what: str
    found: str
    verdict: Verdict = "ok"


class Report(Record):
    """All that was found."""

    findings: tuple[Finding, ...]


def main() -> None:
    """Answer one job."""
    connection = begin_as_child()
    with connection, connection.makefile("rb") as requests:
        job = Job.model_validate_json(requests.readline())
        findings = [
            f.model_copy(update={"found": storable(f.found)}) for f in look_at_template(job)
        ]
        connection.sendall(line_of(Report(findings=tuple(findings))))


def look_at_template(job: Job) -> list[Finding]:
    """Everything that can be known of the chat template, the prompts and the strategies before a run."""
    try:
        with boundary(ConfigurationError, "the model's tokenizer cannot be loaded"):
            chat = _chat_of(job)
    except PawlError as error:
        fix = "Set by: policy.model. Fix: save the tokenizer beside the weights again, or give another model"
        return [_problem("chat template", f"{clean_text(str(error))}. {fix}")]
    found: list[Finding] = []
    if isinstance(chat, TokenizerChat):
        found += [*_of_template(chat), *_of_arguments(chat)]
    for prompt in job.prompts:
        try:
            check_prompt(chat, prompt)
        except PawlError as error:
            found.append(_problem("chat template", str(error)))
    tools: tuple[dict[str, object], ...] = ()
    for number, tried in enumerate(job.strategies):
        try:
            with boundary(ConfigurationError, f"{tried.where} cannot work"):
                strategy: RolloutStrategy = create(STRATEGIES.parse(tried.config))
                try:
                    for warning in strategy.template_findings(chat, tried.where):
                        found.append(
                            Finding(what="chat template", found=warning, verdict="warning")
                        )
                    tools = strategy.sample_tools() if number == 0 else tools
                finally:
                    strategy.close()
        except PawlError as error:
            found.append(_problem("rollout.strategy", clean_text(str(error))))
    if job.prompts and isinstance(chat, TokenizerChat):
        found += _first_prompt(chat, job.prompts[0], tools)
    return found


def _chat_of(job: Job) -> ChatFormat:
    if job.model is None:
        from workers.rollout.engines.fake import FakeChat

        return FakeChat()
    return TokenizerChat.load(job.model, trust_remote_code=job.trust_remote_code, settings=job.chat)


def _of_template(chat: TokenizerChat) -> Iterator[Finding]:
    tokens = chat.tokenizer.convert_ids_to_tokens(sorted(chat.terminators))
    if tokens:
        yield Finding(what="chat template", found=f"a turn ends with {' or '.join(tokens)}")
    else:
        yield _problem(
            "chat template",
            "nothing ends a turn: neither the model's files nor its template name a token. Set by: eos_token_id of its "
            "generation_config.json. Fix: write it there",
        )
    if chat.reads_date:
        yield Finding(
            what="chat template",
            found=f"it tells the date: {chat.day}, which the run keeps over a resume (rollout.template_date)",
        )
    if chat.added_bos and not chat.settings.bos and not chat.writes_bos:
        yield Finding(
            what="chat template",
            found=f"the tokenizer puts {chat.added_bos} before a text, and the chat template writes none: prompts "
            "begin without it. Set by: rollout.template_bos (false). Fix: set rollout.template_bos: true if the model "
            "was trained with it",
            verdict="warning",
        )


def _of_arguments(chat: TokenizerChat) -> Iterator[Finding]:
    settings = chat.settings
    for name in settings.template_arguments:
        others = {k: v for k, v in settings.template_arguments.items() if k != name}
        without = chat.configured(settings.model_copy(update={"template_arguments": others}))
        if chat.samples() == without.samples():
            yield Finding(
                what="chat template",
                found=f"rollout.template_arguments.{name} changes nothing that this template writes. Fix: leave it "
                "out, or correct its name or value",
                verdict="warning",
            )


def _first_prompt(
    chat: TokenizerChat, prompt: Prompt, tools: tuple[dict[str, object], ...]
) -> Iterator[Finding]:
    """The prompt exactly as its ids say it, control tokens included."""
    try:
        text = chat.text(prompt.messages, (*prompt.tools, *tools), generation_prompt=True)
        ids = chat.encode(text)
    except PawlError:  # said already
        return
    shown = str(chat.tokenizer.decode(list(ids), skip_special_tokens=False))
    if len(shown) > MAX_SHOWN:
        left = len(shown) - MAX_SHOWN
        shown = (
            f"{shown[: MAX_SHOWN // 2]}\n[... {left} characters ...]\n{shown[-MAX_SHOWN // 2 :]}"
        )
    yield Finding(
        what="first prompt",
        found=f"prompt {prompt.id}, {len(ids)} tokens, as the policy reads it:\n{shown}",
    )


def _problem(what: str, found: str) -> Finding:
    return Finding(what=what, found=found, verdict="problem")


if __name__ == "__main__":
    main()
