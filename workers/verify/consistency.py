"""Tests whether verifiers say the same of the same trajectory: asked once more what was asked first of each shard.

What a policy learns from verdicts that are partly chance is partly chance, and no other number shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

from policies.base.records import Prompt, Trajectory, Verdict, VerdictStatus
from workers.verify.isolated_verifier import IsolatedVerifier


def contradicting(
    verifiers: Sequence[IsolatedVerifier],
    asked: Sequence[Sequence[tuple[Prompt, Trajectory]]],
    verdicts: Sequence[Sequence[Verdict]],
) -> list[IsolatedVerifier]:
    """The verifiers that say something else when they are asked again; all work side by side.

    Errors prove nothing (a timeout may be the machine's) and are not asked about again.

    Args:
        verifiers: who was asked.
        asked: what, a list for each of them.
        verdicts: what they said of it.
    """
    again = []
    for verifier, items, said in zip(verifiers, asked, verdicts, strict=True):
        number = verifier.first_question(
            items
        )  # a group is asked about as a whole, for its members are compared
        if number and not any(v.status is VerdictStatus.ERROR for v in said[:number]):
            again.append((verifier, said[:number], verifier.submit(items[:number])))
    return [v for v, first, future in again if any(map(_differs, first, future.result()))]


def _differs(first: Verdict, second: Verdict) -> bool:
    if second.status is VerdictStatus.ERROR:
        return False
    return (first.status, first.score) != (second.status, second.score)
