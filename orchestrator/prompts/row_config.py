"""Settings of sources that read rows: the layout of the data, its columns, and which rows are used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from orchestrator.prompts.source import PromptSource
from policies.base.bounds import MAX_COUNT, MAX_WHOLE
from policies.base.component import Settings

Format = Literal[
    "auto",
    "plain",
    "trl",
    "verl",
    "openai",
    "sharegpt",
    "alpaca",
    "gsm8k",
    "math",
    "multiple_choice",
    "apps",
    "code_contests",
    "livecodebench",
]


class Columns(Settings):
    """Columns by what they hold. A name may lead into a column: `reward_model.ground_truth`, `choices[0].text`."""

    prompt: str = "prompt"
    """Text of the question, or a chat; not read when `messages` or `template` is set. The default stands for the column
    that the layout of the data has."""
    messages: str | None = None
    """Chat messages, a list of {role, content} or {from, value}; replaces `prompt`."""
    answer: str | None = "answer"
    """Ground truth; null for data without one. The default stands for the column that the layout of the data has, and
    may be absent from the data."""
    tools: str | None = "tools"
    """Schemas of the tools that the chat template shows, a list or its JSON text; null shows none. The default may be
    absent from the data."""
    system: str | None = None
    """A column with the system message of each row; null takes the one that the layout has, if any."""
    id: str | None = None
    """Names of prompts; a digest of the messages by default and where a name has unusual characters."""
    metadata: tuple[str, ...] = ()
    """Columns to keep for verifiers, by the names given here; layouts add their own (`pawl validate` prints them)."""

    @model_serializer(mode="wrap")
    def _what_was_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A column that is named must be there, a default need not: a run's own copy of its config must tell them apart.
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name in self.model_fields_set}


class RowConfig(PromptSource.Config):
    """Settings of sources that read rows."""

    format: Format = "auto"
    """Layout of the data: in which columns question and answer stand and how they are read, e.g. gsm8k: the answer is
    what stands behind ####. `auto` tells it by the first rows, and `pawl validate` prints it; `plain` takes columns as
    they stand."""
    columns: Columns = Field(default_factory=Columns)
    """Which column holds what, e.g. {prompt: question, answer: answer}."""
    system: str | None = None
    """System message put before every prompt."""
    template: str | None = None
    """Text of the user message with {column}, {column.key} and {column[0]} placeholders; {{ and }} stand for braces."""
    last_assistant: Literal["auto", "answer", "drop", "refuse"] = "auto"
    """What a chat's last turn is when it is the assistant's. `answer`: what should be answered, taken off the prompt as
    answer and demonstration; `drop`: taken off as a demonstration alone. `auto`: `answer` where the row has no other
    answer, else `drop`, and `refuse` in layouts where it would be the beginning of the policy's turn (trl, verl)."""
    ignore_keys: tuple[str, ...] = ()
    """Keys of messages, and columns of images, that may be lost, e.g. [weight]; what else would be lost is refused."""
    limit: int | None = Field(default=None, gt=0, le=MAX_COUNT)
    """Read at most so many rows of the data."""
    shuffle_seed: int | None = Field(default=None, ge=-MAX_WHOLE, le=MAX_WHOLE)
    """Shuffle what was read with this seed, before `skip` and `take`; null keeps the order of the data."""
    skip: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Leave out so many prompts at the beginning: two sources with disjoint slices split one data set."""
    take: int | None = Field(default=None, gt=0, le=MAX_COUNT)
    """Use at most so many prompts after `skip`."""
    duplicates: Literal["keep_first", "refuse"] = "keep_first"
    """What to do with a prompt that comes again: leave it out with a warning, or refuse the data."""
    conflicts: Literal["refuse", "keep_first", "drop"] = "refuse"
    """What to do with a prompt that comes again with another answer, or other metadata: refuse the data, keep the first
    row, or leave out all rows of such a prompt."""
