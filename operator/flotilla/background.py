"""Contain failures: one in a background loop restarts that loop, one of an object passes the others by."""

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_BASE_S, _CAP_S = 1.0, 60.0
_HEALTHY_AFTER_S = 60.0
"""A loop that ran for so long starts with the shortest pause again."""
_LOG_AGAIN_S = 60.0
_REMEMBERED = 1000

_logged: OrderedDict[tuple[str, object], float] = OrderedDict()
"""When a failure of an object was last logged."""


async def keep_running(
    name: str,
    loop: Callable[[], Awaitable[None]],
    *,
    on_failure: Callable[[str], None] = lambda _: None,
    base_s: float = _BASE_S,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run `loop` until it returns. When it raises, log it, call `on_failure` with the name, and start it again.

    The pause before that doubles with each failure in a row, from `base_s` to a minute, with jitter.
    """
    pause_s = base_s
    while True:
        began = clock()
        try:
            await loop()
        except Exception:
            if clock() - began > _HEALTHY_AFTER_S:
                pause_s = base_s
            wait_s = pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            pause_s = min(2 * pause_s, _CAP_S)
            log.exception(
                "a background loop failed and is started again; please report this",
                extra={"loop": name, "after_s": round(wait_s, 2)},
            )
            on_failure(name)
            await asyncio.sleep(wait_s)
        else:
            return


@contextmanager
def isolated(what: str, key: object, *, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Around the part of a loop that concerns one object: an exception is logged, and the loop goes on with the next.

    A loop comes by every few seconds, so the failure of one object is logged once a minute at most.
    """
    try:
        yield
    except Exception:
        now = clock()
        if now - _logged.get((what, key), float("-inf")) < _LOG_AGAIN_S:
            return
        _logged[what, key] = now
        _logged.move_to_end((what, key))
        if len(_logged) > _REMEMBERED:
            _logged.popitem(last=False)
        log.exception("one object failed and is passed over; please report this", extra={"what": what, "key": str(key)})
