"""Imports of plug-ins in their process: announced to the driver, watched, and refused when it misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.config.plug_ins import opened
from orchestrator.config.plug_ins.surroundings import Surroundings
from policies.base.component import Component, watched_by
from policies.base.errors import ConfigurationError
from policies.plug_ins.stand_ins import PlugInFacts, describe, is_plug_in

ADVICE = "do it inside the class or function that is named, or under `if __name__ == '__main__':`"


class Importing:
    """Takes note of the plug-ins that a config becomes, and surrounds their imports."""

    def __init__(self, tell: Callable[[str, bool], None]) -> None:
        """Tell `tell(reference, loaded)` before and after each import."""
        self._tell = tell
        self._parsed: list[tuple[str, dict[str, Any], Component.Config]] = []
        self._depth = 0
        self.references: list[str] = []
        """What was imported, in order."""
        self.opened: dict[str, list[Path]] = {}
        """Files that the import of each opened."""

    def watching(self) -> AbstractContextManager[None]:
        """Watch every import of a plug-in meanwhile."""
        return watched_by(self)

    def facts(self) -> list[PlugInFacts]:
        """Descriptions of the plug-ins whose settings were read."""
        found: dict[str, PlugInFacts] = {}
        for family, given, config in self._parsed:
            # A file may also name a class of ours that it imports: the driver cannot know without the file.
            if is_plug_in(config) or ":" in str(given.get("type")):
                told = describe(family, given, config)
                found[told.model_dump_json()] = told
        return list(found.values())

    def known(self, family: str, value: dict[str, Any]) -> Component.Config | None:
        return None

    def parsed(self, family: str, value: dict[str, Any], config: Component.Config) -> None:
        self._parsed.append((family, value, config))

    def loading(self, reference: str) -> AbstractContextManager[None]:
        return self._loading(reference)

    @contextmanager
    def _loading(self, reference: str) -> Iterator[None]:
        before = Surroundings()
        self._depth += 1
        if self._depth == 1:
            self._tell(reference, False)
            opened.start()
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:  # KeyboardInterrupt too: nobody presses keys here
            raised = error
        finally:
            self._depth -= 1
        before.end_if_copied()
        changes = before.changes()
        before.restore()
        if self._depth == 0:
            self.opened.setdefault(reference, []).extend(opened.files())
            self._tell(reference, True)
        if reference not in self.references:
            self.references.append(reference)
        if changes:
            raise ConfigurationError(
                f"the module of a plug-in {' and '.join(changes[:5])} when it is imported (got {reference!r}). "
                f"Fix: {ADVICE}"
            )
        if isinstance(raised, (Exception, SystemExit)):
            raise raised
        if raised is not None:
            said = f"{type(raised).__name__}: {str(raised)[:1000]}"
            raise ConfigurationError(
                f"cannot import the module of a plug-in: {said} (got {reference!r}). Fix: correct the module"
            ) from raised
