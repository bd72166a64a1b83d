"""Facts that verifiers ask of a prompt: its ground truth as text, and the question as the user wrote it."""

from __future__ import annotations

import json

from policies.base.errors import VerificationError, explain
from policies.base.records import Json, Prompt


def require_answer(prompt: Prompt, source: str) -> Json:
    """The ground truth of `prompt`.

    Raises:
        VerificationError: there is none. Scoring 0 would teach the policy that its answers are wrong.
    """
    if prompt.answer is None or (isinstance(prompt.answer, str) and not prompt.answer.strip()):
        raise VerificationError(
            explain(
                f"verifier {source!r} needs an answer and prompt {prompt.id!r} has none",
                value=prompt.answer,
                where="the answer column of the prompt source (columns.answer)",
                fix="map the column that holds the ground truth, or use a verifier that needs none",
            )
        )
    return prompt.answer


def answer_text(prompt: Prompt, source: str) -> str:
    """The ground truth as text: strings as they are, numbers and booleans as JSON writes them."""
    return scalar_text(require_answer(prompt, source), prompt, source)


def scalar_text(answer: Json, prompt: Prompt, source: str) -> str:
    """One answer as text; lists and objects have no single text and are refused."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, (bool, int, float)):
        return json.dumps(answer)
    raise VerificationError(
        explain(
            f"verifier {source!r} compares text or numbers; the answer of prompt {prompt.id!r} is neither",
            value=answer,
            where="the answer column of the prompt source (columns.answer)",
            fix="give a string or a number, or write a verifier of your own (type: ./my_file.py:score)",
        )
    )


def last_user_message(prompt: Prompt) -> str:
    """The text of the last user message: what a user's function gets as `prompt`."""
    return next((m.content for m in reversed(prompt.messages) if m.role == "user"), "")
