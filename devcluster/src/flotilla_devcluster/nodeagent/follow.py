"""List, then watch, then list again: a small informer."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from flotilla.errors import FlotillaError
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import Kind

log = logging.getLogger(__name__)

_RETRY_S = 0.5


async def follow(
    client: KubeClient,
    kind: Kind,
    *,
    changed: Callable[[dict[str, Any]], None],
    gone: Callable[[dict[str, Any]], None],
    field_selector: str | None = None,
) -> None:
    """Call `changed` and `gone` for every object until cancelled; after a break, for what happened meanwhile too."""
    known: dict[str, dict[str, Any]] = {}
    while True:
        try:
            page = await client.list(kind, field_selector=field_selector)
            present = {item["metadata"]["uid"]: item for item in page.items}
            for uid in known.keys() - present.keys():
                gone(known.pop(uid))
            for uid, item in present.items():
                known[uid] = item
                changed(item)
            async for type_, obj in client.watch(
                kind, resource_version=page.resource_version, field_selector=field_selector
            ):
                if type_ == "DELETED":
                    known.pop(obj["metadata"]["uid"], None)
                    gone(obj)
                elif type_ != "BOOKMARK":
                    known[obj["metadata"]["uid"]] = obj
                    changed(obj)
        except FlotillaError as error:
            log.info("a watch is started again", extra={"resource": kind.plural, "cause": str(error)})
            await asyncio.sleep(_RETRY_S)
