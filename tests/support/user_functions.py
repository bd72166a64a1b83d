"""Functions as users bring them, written to a file, and asked about attempts at one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.base.component import create
from policies.base.records import Json, Message, Prompt, Trajectory, Verdict
from tests.support.attempts import attempt
from workers.verify.verifier import VERIFIERS, Verifier


def question(answer: Json = "56", **metadata: Json) -> Prompt:
    """A chat of two messages with an answer and columns."""
    chat = (Message(role="system", content="Be brief."), Message(role="user", content="7 times 8?"))
    return Prompt(id="p", messages=chat, answer=answer, metadata=metadata)


def written(folder: Path, source: str, name: str = "f") -> str:
    """A reference to the function `name` of a new file with `source`."""
    path = folder / f"mine_{len(list(folder.iterdir()))}.py"
    path.write_text(source, encoding="utf-8")
    return f"{path}:{name}"


def verifier_of(reference: str, **settings: Any) -> Verifier:
    """The verifier that calls the function, in this process."""
    made: Verifier = create(
        VERIFIERS.parse({"type": "callable", "function": reference, **settings})
    )
    return made


def attempts(texts: Sequence[str]) -> list[Trajectory]:
    """One attempt a text, all at the prompt of `question`."""
    return [attempt(text, name=f"t{i}", sample_index=i) for i, text in enumerate(texts)]


def asked(reference: str, prompt: Prompt, texts: Sequence[str], **settings: Any) -> list[Verdict]:
    """Verdicts on all attempts at `prompt`, asked as a run asks: together where the verifier takes groups."""
    verifier = verifier_of(reference, **settings)
    if verifier.takes_groups:
        return verifier.verify_group(prompt, attempts(texts))
    return [verifier.verify(prompt, each) for each in attempts(texts)]


def scores(
    reference: str, prompt: Prompt, texts: Sequence[str], **settings: Any
) -> list[float | None]:
    """Scores of the same; None where there is none."""
    return [verdict.score for verdict in asked(reference, prompt, texts, **settings)]
