"""A worker whose plug-ins must stay what they are: looked at when it is built, and before an answer of it counts.

Plug-ins are loaded on the node of the worker, from its files, and some of it late: a helper module that is edited in
between, or is another on this node, would judge by two measures in one round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from policies.base.errors import PlugInChangedError, explain
from policies.plug_ins.plugin_code import PlugInCode, changes, now


class PinnedWorker:
    """Stands before a worker of any kind and passes its calls on."""

    def __init__(
        self,
        *,
        pinned_factory: Callable[..., Any],
        pinned_code: Mapping[str, PlugInCode],
        pinned_run: str,
        **kwargs: Any,
    ) -> None:
        """Build the worker.

        Args:
            pinned_factory: its class.
            pinned_code: what its plug-ins have to be made of, by name.
            pinned_run: the run folder, for messages.
            kwargs: arguments of the worker.

        Raises:
            PlugInChangedError: on this node a plug-in is made of something else.
        """
        self._code = dict(pinned_code)
        self._run = pinned_run
        self._check()
        self._worker = pinned_factory(**kwargs)
        self._check()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._worker, name)
        if name.startswith("_") or name == "close" or not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._check()
            answer = found(*args, **kwargs)
            self._check()
            return answer

        return call

    def _check(self) -> None:
        check_unchanged(self._code, self._run)


def check_unchanged(held: Mapping[str, PlugInCode], run: str) -> None:
    """Look at plug-ins again.

    Raises:
        PlugInChangedError: one is not made of what `held` says.
    """
    found = [
        f"{name}: {what}" for name, code in held.items() for what in changes(code, now(name, code))
    ]
    if found:
        raise PlugInChangedError(refusal(found, run))


def refusal(found: list[str], run: str) -> str:
    """The message about changed plug-ins, with both remedies."""
    more = f"; and {len(found) - 8} more" if len(found) > 8 else ""
    return explain(
        "plug-ins are not what the run has had until now",
        value="; ".join(found[:8]) + more,
        where="the files and packages that the config names, and what they load",
        fix=f"restore them and `pawl resume {run}`, or take them from the coming round on with "
        f"`pawl resume {run} --accept-changes`",
    )
