"""Whether verifiers say the same of the same trajectory: asked once more about the first one of each shard.

What a policy learns from verdicts that are partly chance is partly chance, and no other number shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

from policies.records import Prompt, Trajectory, Verdict, VerdictStatus
from workers.verify.isolation import IsolatedVerifier


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
    again = [
        (verifier, said[0], verifier.submit(items[:1]))
        for verifier, items, said in zip(verifiers, asked, verdicts, strict=True)
        if said and said[0].status is not VerdictStatus.ERROR
    ]
    return [v for v, first, future in again if _differs(first, future.result()[0])]


def _differs(first: Verdict, second: Verdict) -> bool:
    if second.status is VerdictStatus.ERROR:
        return False
    return (first.status, first.score) != (second.status, second.score)
