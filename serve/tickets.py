"""Tickets: what lets a browser open one conversation, once and soon, as it cannot send a token with a WebSocket."""

import secrets
import time
from collections.abc import Callable

TICKET_SECONDS = 30.0  # for which a ticket is good
PREFIX = "ticket."  # of the WebSocket subprotocol that carries one


class Tickets:
    """Those that were given out and neither used nor expired; each keeps a place for its conversation."""

    def __init__(self, seconds: float = TICKET_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._open: dict[str, tuple[str, float]] = {}  # ticket -> conversation's id, when it expires; in the order given out

    def issue(self) -> tuple[str, str]:
        """A new conversation's id, and the ticket for it."""
        ticket, conversation = secrets.token_urlsafe(32), new_id()
        self._open[ticket] = conversation, self._clock() + self.seconds
        return conversation, ticket

    def take(self, ticket: str, conversation: str | None = None) -> str | None:
        """The id that `ticket` is for, which is then used up; None if it is no open ticket, or for another `conversation`.

        A ticket has 256 random bits, so looking it up tells nothing of the others.
        """
        self._forget_old()
        found = self._open.get(ticket)
        if found is None or conversation not in (None, found[0]):
            return None
        del self._open[ticket]
        return found[0]

    def __len__(self) -> int:
        self._forget_old()
        return len(self._open)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._open and next(iter(self._open.values()))[1] <= now:
            del self._open[next(iter(self._open))]


def new_id() -> str:
    """The name of a conversation, not to be guessed."""
    return f"live_{secrets.token_hex(12)}"
