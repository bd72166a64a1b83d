"""One trajectory of several turns while it is under way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from policies.base.errors import PawlError, RolloutError, boundary
from policies.base.records import Ending, Message, Prompt, Turn
from workers.rollout.chat.transcript import Transcript
from workers.rollout.multi_turn.counterpart import Counterpart, Outcome
from workers.rollout.multi_turn.thread_pool import Finished

logger = logging.getLogger(__name__)


class Conversation:
    """One trajectory under way."""

    def __init__(self, key: int, prompt: Prompt, sample_index: int) -> None:
        self.key = key
        self.prompt = prompt
        self.sample_index = sample_index
        self.counterpart: Counterpart | None = None
        self.transcript: Transcript | None = None
        self.opening: tuple[Message, ...] = ()
        self.turns: list[Turn] = []
        self.then: Callable[[Conversation, Finished], None] | None = None
        """Takes what the counterpart answers."""
        self.ending: Ending | None = None
        self.error: str | None = None
        self.outcome = Outcome()
        self._given_up = False
        self._closed = False
        self._lock = threading.Lock()

    @property
    def policy_turns(self) -> list[int]:
        """Tell where in `turns` the policy's are."""
        return [n for n, turn in enumerate(self.turns) if turn.role == "policy"]

    @property
    def closed(self) -> bool:
        """Tell whether there is nothing to close, or no longer."""
        return self._closed or self.counterpart is None

    def adopt(self, counterpart: Counterpart) -> Counterpart:
        """Keep the counterpart; one that came after its time is closed at once."""
        self.counterpart = counterpart
        if self._given_up:
            self.close()
        return counterpart

    def give_up(self) -> None:
        """Wait for this counterpart no longer."""
        self._given_up = True

    def close(self) -> None:
        """Close the counterpart, once. What goes wrong in that no longer concerns the trajectory."""
        with self._lock:
            if self._closed or self.counterpart is None:
                return
            self._closed = True
        try:
            with boundary(RolloutError, "closing a counterpart failed"):
                self.counterpart.close()
        except PawlError as error:
            logger.warning("%s (prompt %s)", error, self.prompt.id)
