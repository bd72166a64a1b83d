"""Requirements of a component: the models, secrets, files, memory and addresses that it needs where it runs.

A component's `Config.requires()` answers with them. The plan, the secrets of workers, code trust, file shipping and
retention ask it; none of them reads the settings of a component by name.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, JsonValue

from policies.base.messages import Record
from policies.base.policy_choice import PolicyChoice

POLICY = "policy"
"""Name of the run's own policy where a component loads it beside the sampler and the trainer."""


class Hosting(Record):
    """Habits of an engine with the model that it is handed; whoever hands it over counts its memory.

    Example: `Hosting(gpus=2, gpus_set_by="tensor_parallel_size", max_context=4096)`.
    """

    gpus: int = 1
    """GPUs that hold one copy, where there are some; 0 for an engine that computes with no model."""
    gpus_set_by: str = ""
    """The setting that says so, for messages."""
    splits_heads: bool = False
    """The model's attention heads are divided evenly between the GPUs of a copy."""
    scripted: bool = False
    """It follows a script: its model has neither layers nor a tokenizer, and bytes are its tokens."""
    trusts_code: bool = False
    """It runs Python code that comes with the model."""
    max_context: int | None = None
    """Longest prompt plus completion in tokens; None takes the model's own limit."""
    max_sequences: int = 128
    """Sequences whose keys and values are held at one time."""
    cpu_cache_bytes: int = 0
    """Reserved for keys and values where it runs on a CPU."""


class ModelRequirement(Record):
    """A model that a component loads itself.

    Example: `ModelRequirement(name="org/reward-model", set_by="model", memory_bytes=14_000_000_000, gpus=1)`.
    """

    name: str
    """A hub id, a folder, or `policy` for a version of the run's own policy."""
    set_by: str = "model"
    """The setting that names it, for messages."""
    version: PolicyChoice | None = None
    """Of the policy: which version; None is the one that the run began with."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Number format of its weights; None takes `policy.dtype`."""
    gpus: int = 0
    """GPUs that hold one copy, where there are some; 0 stays on the CPU."""
    memory_bytes: int | None = Field(default=None, ge=0)
    """Memory of one copy with all that it works with; None lets the plan estimate it from the weights."""
    tokenizer_only: bool = False
    """Only its tokenizer is loaded: no weights, no memory to speak of."""
    hosting: Hosting | None = None
    """The habits of the engine of ours that it is handed to; None where the component loads it by itself."""
    trusts_code: bool = False
    """Python code that comes with it is run."""
    trusted_by: str = "trust_remote_code"
    """The setting that says so, for messages."""


class Requirements(Record):
    """All that one component needs. Empty for a component that computes with its arguments alone.

    Example: `Requirements(models=(ModelRequirement(name="org/reward-model", gpus=1),), secrets=("MY_API_KEY",))`.
    """

    models: tuple[ModelRequirement, ...] = ()
    """Loaded once by each worker that has the component."""
    hosting: Hosting | None = None
    """Of an engine: its habits with the model that it is handed."""
    memory_bytes: int = Field(default=0, ge=0)
    """Memory besides models: an index, a table of embeddings."""
    secrets: tuple[str, ...] = ()
    """Environment variables with secrets that it reads."""
    code: tuple[str, ...] = ()
    """Functions of a user's that it calls: `package.module:name` or `./file.py:name`."""
    files: tuple[str, ...] = ()
    """Files that decide what it says: prompts, word lists. A run notices when one is edited."""
    hosts: tuple[str, ...] = ()
    """Addresses that it asks."""
    ports: tuple[str, ...] = ()
    """Connections that it listens for, in words for `pawl plan`."""
    packages: tuple[str, ...] = ()
    """Python packages that it imports where it runs, and that not every installation has."""
    data_sets: tuple[str, ...] = ()
    """Data sets that would be downloaded where they are not on the machine, by name."""
    sandbox: dict[str, JsonValue] | None = None
    """Settings of the sandbox in which it runs code that a model wrote; None where it runs none."""
    max_turns: int | None = None
    """Of a strategy: most turns of the policy in a trajectory; None where it takes one turn."""
    max_trajectory_tokens: int | None = None
    """Of a strategy: most tokens after the prompt; None leaves it to the turns."""
    judged_steps: bool = False
    """It learns from steps that a verifier or a judge has scored."""
    probabilities: bool = False
    """It learns from how sure a judge is, not only from what it prefers."""
    agreement: bool = False
    """Of a verifier: it grades attempts by what the others at the same prompt say, and not by what is right."""
    revisions: bool = False
    """Of a builder: it learns from attempts that revise others. Of a strategy: it makes some."""
    raw_scores: bool = False
    """Of a verifier or judge: its scores may be any finite number, such as a reward, instead of [0, 1]."""

    def __add__(self, other: Requirements) -> Requirements:
        """Both together; where only one can hold, what `other` says: `super().requires() + Requirements(...)`."""
        told = {name: _joined(value, dict(other)[name]) for name, value in self}
        told["memory_bytes"] = self.memory_bytes + other.memory_bytes
        return Requirements.model_validate(told)

    def below(self, setting: str) -> Self:
        """The same, told by the component that has this one under `setting`, which hands a model to it."""
        models = tuple(
            m.model_copy(
                update={
                    "set_by": f"{setting}.{m.set_by}",
                    "trusted_by": f"{setting}.{m.trusted_by}",
                }
            )
            for m in self.models
        )
        return self.model_copy(update={"models": models, "hosting": None})


NOTHING = Requirements()


def _joined(one: Any, other: Any) -> Any:
    """Lists add up, without repeats; of anything else the second holds where it says something."""
    if isinstance(one, tuple):
        return (*one, *(each for each in other if each not in one))
    if isinstance(one, bool):
        return one or other
    return one if other is None else other
