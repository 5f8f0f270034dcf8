"""Runs a Batcher in real time: one timer, few wake-ups, many streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flotilla.simulation.engine import Batcher, Event, EventKind, Phase, SimulatedSequence, Steps


class Ticket:
    """The sequences of one HTTP request and the news about them."""

    def __init__(self, sequences: list[SimulatedSequence], *, streaming: bool) -> None:
        self.sequences = sequences
        self.streaming = streaming
        self._news = asyncio.Event()

    @property
    def finished(self) -> bool:
        return all(sequence.phase is Phase.FINISHED for sequence in self.sequences)

    def wake(self) -> None:
        self._news.set()

    async def news(self) -> None:
        """Wait until there may be new tokens (streams) or an end."""
        await self._news.wait()
        self._news.clear()


class EngineLoop:
    """The engine process behind the HTTP server.

    First tokens and ends wake their request at their own time; what streams get in between comes with a tick
    every `tick_s`. So a hundred streams cost a few dozen wake-ups a second, and the time to the first token
    is the model's.
    """

    def __init__(self, batcher: Batcher, *, on_event: Callable[[Event | Steps], None], tick_s: float) -> None:
        self.batcher = batcher
        self.dead = False
        self._on_event = on_event
        self._tick_s = tick_s
        self._loop = asyncio.get_running_loop()
        self._owners: dict[SimulatedSequence, Ticket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_tick_s = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, sequences: list[SimulatedSequence], *, streaming: bool) -> Ticket:
        """Queue the sequences; ValueError from the batcher where one can never run."""
        ticket = Ticket(sequences, streaming=streaming)
        now_s = self._loop.time()
        for sequence in sequences:
            self.batcher.submit(sequence, now_s)
            self._owners[sequence] = ticket
        self._idle.clear()
        self._deliver(now_s)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """The client left: what has not ended is aborted. A dead engine cannot even do that."""
        if self.dead:
            return
        now_s = self._loop.time()
        for sequence in ticket.sequences:
            self.batcher.abort(sequence, now_s)
        self._deliver(now_s)

    def refresh(self) -> None:
        """Bring the batcher's numbers up to now, for a scrape between two wake-ups."""
        if not self.dead:
            self._deliver(self._loop.time())

    def kill(self) -> None:
        """The engine process dies without a word: nobody who waits on a ticket hears of it."""
        self.dead = True
        if self._timer is not None:
            self._timer.cancel()

    async def idle(self) -> None:
        """Wait until nothing runs and nothing waits."""
        await self._idle.wait()

    def _deliver(self, now_s: float) -> None:
        for event in self.batcher.advance(now_s):
            self._on_event(event)
            if isinstance(event, Event):
                self._forward(event)
        if not self._owners:
            self._idle.set()
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + self._tick_s
            for sequence in self.batcher.running:
                ticket = self._owners[sequence]
                if ticket.streaming and sequence.phase is Phase.DECODE:
                    ticket.wake()
        self._arm()

    def _forward(self, event: Event) -> None:
        if event.kind in (EventKind.FINISHED, EventKind.ABORTED):
            ticket = self._owners.pop(event.sequence)
            if ticket.streaming or ticket.finished:
                ticket.wake()
        elif event.kind is EventKind.FIRST_TOKEN and self._owners[event.sequence].streaming:
            self._owners[event.sequence].wake()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_s = self.batcher.next_event_s
        if wake_s is None:
            return
        if any(ticket.streaming for ticket in self._owners.values()):
            wake_s = min(wake_s, self._next_tick_s)
        self._timer = self._loop.call_at(wake_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._deliver(self._loop.time())
