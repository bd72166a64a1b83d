"""What a row of the bad-input matrix is, and the good input that each row spoils."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FAKE_MODEL = Path(__file__).resolve().parents[2] / "configs" / "fake-model"

CONFIG = f"""\
rounds: 1
policy: {{model: {FAKE_MODEL}, dtype: float32}}
prompts:
  train: {{type: jsonl, path: ./train.jsonl}}
  held_out: {{type: jsonl, path: ./held_out.jsonl}}
  per_round: 2
rollout: {{engine: fake, samples_per_prompt: 4, max_tokens: 16}}
verifiers: [numeric_match]
preferences: right_vs_wrong
training: {{engine: fake}}
evaluation: {{samples_per_prompt: 2}}
cluster: {{backend: inline}}
tracking: {{enabled: false}}
"""
"""Good: one round in a second, on prompts from files."""

TRAIN = (
    b'{"prompt": "What is 1 plus 1?", "answer": 2}\n{"prompt": "What is 2 plus 2?", "answer": 4}\n'
)
HELD_OUT = b'{"prompt": "What is 3 plus 4?", "answer": 7}\n'

ALL = ("validate", "run")
LATE = ("plan", "run")
"""What needs a look at the model, the machine or the run folder, which `validate` leaves alone."""


@dataclass(frozen=True)
class Row:
    """One bad input, and the four parts of the message: what, the value, where it is set, what to do.

    `number` is the row of the matrix. The message of every one of `commands` must hold all of `says`.
    """

    number: int
    name: str
    says: tuple[str, str, str, str]
    config: str | bytes = CONFIG
    more: str = ""
    """Lines at the end of the config."""
    overrides: tuple[str, ...] = ()
    files: Mapping[str, bytes | str] = field(default_factory=dict)
    """By name in the current folder; they replace the good ones."""
    missing: tuple[str, ...] = ()
    """Good files that are not there."""
    config_name: str = "c.yaml"
    options: tuple[str, ...] = ()
    """Of `plan` and `run` only."""
    commands: tuple[str, ...] = ALL
    arguments: tuple[str, ...] = ()
    """The whole command line, in the place of `commands`, `config_name` and `overrides`."""
    code: int = 2
    prepare: Callable[[Path], None] | None = None

    @property
    def title(self) -> str:
        return f"{self.number}-{self.name}"

    def spoil(self, folder: Path) -> None:
        """Write the input into `folder`."""
        text = self.config if isinstance(self.config, bytes) else self.config.encode()
        given: dict[str, bytes | str] = {
            "c.yaml": text + self.more.encode(),
            "train.jsonl": TRAIN,
            "held_out.jsonl": HELD_OUT,
            **self.files,
        }
        for name, content in given.items():
            if name not in self.missing:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if self.prepare is not None:
            self.prepare(folder)

    def command_lines(self) -> list[list[str]]:
        """What is typed, one line per command."""
        if self.arguments:
            return [list(self.arguments)]
        return [
            [
                command,
                self.config_name,
                *self.overrides,
                *(self.options if command != "validate" else ()),
                *(["--json"] if command == "plan" else []),
            ]
            for command in self.commands
        ]


def changed(old: str, new: str) -> str:
    """The good config with one thing replaced."""
    assert CONFIG.count(old) == 1, old
    return CONFIG.replace(old, new)
