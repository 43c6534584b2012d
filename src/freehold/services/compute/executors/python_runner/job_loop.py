"""`asyncio` in a job: tasks and timers, in a time that moves on by itself where all of them wait."""

import asyncio

import job_world


class Waiting:
    """A selector with nothing to select: time moves on to the next thing that is due."""

    slept = 0.0

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("nothing will ever happen: every task waits")
        self.slept += max(0.0, timeout)
        return []


class Loop(asyncio.BaseEventLoop):
    """An event loop of tasks and timers."""

    def __init__(self):
        super().__init__()
        self._selector = Waiting()

    def time(self):
        return job_world.get_spent() / 1e9 + self._selector.slept

    def _process_events(self, events):
        pass

    def _write_to_self(self):
        pass


def install():
    """Put it in the place of the loops that would ask the operating system."""
    asyncio.EventLoop = asyncio.new_event_loop = asyncio.events.new_event_loop = Loop
