"""Prices that change while the operator runs: nodes, the catalogue's file, OpenCost. One slow loop keeps them fresh."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

from flotilla.domain import price_catalog
from flotilla.domain.pricing import NO_SOURCES, NodeFacts, PriceSources, node_facts
from flotilla.errors import FlotillaError, Forbidden, InvalidSpec, Transient
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import NODE

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Between two looks at the catalogue's file, and the least time between two lists of nodes."""
_RETRY_S = 30.0
"""Until a failed list of nodes or a failed question to OpenCost is repeated."""


@dataclass(frozen=True, slots=True)
class NodeLister:
    """The nodes by name, where the operator may see them."""

    client: KubeClient
    resources: frozenset[str]
    """Those that are whole GPUs."""

    async def __call__(self, wanted: frozenset[str]) -> dict[str, NodeFacts]:
        """The wanted ones that exist. Raises as a call does."""
        found: dict[str, NodeFacts] = {}
        async for page in self.client.pages(NODE):
            for obj in page.items:
                if obj["metadata"]["name"] in wanted:
                    found[obj["metadata"]["name"]] = node_facts(obj, self.resources)
        return found


Nodes = Callable[[frozenset[str]], Awaitable[Mapping[str, NodeFacts]]]
OpenCost = Callable[[], Awaitable[Mapping[str, Decimal]]]


@dataclass(slots=True)
class PriceBook:
    """What is known now; `run` keeps it so and calls `changed` when something is new."""

    changed: Callable[[], None]
    clock: Callable[[], float]
    interval_s: float
    """Between two lists of nodes, and between two questions to OpenCost."""
    nodes: Nodes | None = None
    """None: the operator may not see nodes."""
    catalog_file: Path | None = None
    opencost: OpenCost | None = None
    sources: PriceSources = NO_SOURCES
    problem: str = ""
    """Why the catalogue's newest content is not in force; empty when it is."""
    _facts: dict[str, NodeFacts] = field(default_factory=dict)
    _wanted: set[str] = field(default_factory=set)
    _missing: set[str] = field(default_factory=set)
    """Asked for since the last list that succeeded."""
    _read: tuple[int, int, int] | None = None
    _no_list_before: float = -math.inf
    """When a list of nodes may be tried again after one that failed."""
    _list_due: float = -math.inf
    """When the nodes that are known are read again."""
    _opencost_due: float = -math.inf

    @property
    def version(self) -> str:
        """Changes with the catalogue's content."""
        return self.sources.catalog.version

    def node(self, name: str) -> NodeFacts | None:
        """What is known of a node; None until it was listed, which is soon after the first question."""
        if name and name not in self._wanted:
            self._wanted.add(name)
            self._missing.add(name)
        return self._facts.get(name)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask each source whose time has come."""
        self.reread()
        now = self.clock()
        if now >= self._no_list_before and (self._missing or (self._wanted and now >= self._list_due)):
            await self._list(now)
        if self.opencost is not None and now >= self._opencost_due:
            await self._ask(self.opencost, now)

    def reread(self) -> None:
        """Take the catalogue's content if it changed; keep the last good one if it is wrong, and say so."""
        if self.catalog_file is None:
            return
        stamp = self._stamp(self.catalog_file)
        if stamp is not None and stamp == self._read:
            return
        self._read = stamp
        try:
            catalog, problem = price_catalog.load(self.catalog_file), ""
        except InvalidSpec as error:
            catalog = self.sources.catalog
            problem = f"The new price catalogue is refused and the last good one stays in force: {error}"
        if (catalog.version, problem) == (self.version, self.problem):
            return
        if problem:
            log.error("price catalogue refused", extra={"cause": problem})
        else:
            log.info("price catalogue", extra={"version": catalog.version})
        self.problem = problem
        self.sources = replace(self.sources, catalog=catalog)
        self.changed()

    @staticmethod
    def _stamp(file: Path) -> tuple[int, int, int] | None:
        # A mounted ConfigMap is a link that the kubelet turns to another folder: the inode tells.
        try:
            stat = file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    async def _list(self, now: float) -> None:
        asked, self._missing = self._missing, set()
        if self.nodes is None:
            return
        try:
            found = dict(await self.nodes(frozenset(self._wanted)))
        except Forbidden as refused:
            log.warning(
                "no permission to list nodes; spot prices and node annotations are ignored",
                extra={"cause": str(refused)},
            )
            self.nodes = None
            return
        except Transient as failure:
            self._missing |= asked
            self._no_list_before = now + min(_RETRY_S, self.interval_s)
            log.info("the list of nodes failed and will be retried", extra={"cause": str(failure)})
            return
        self._list_due = now + self.interval_s
        self._wanted &= found.keys()
        if found != self._facts:
            self._facts = found
            self.changed()

    async def _ask(self, opencost: OpenCost, now: float) -> None:
        try:
            prices = dict(await opencost())
        except FlotillaError as failure:
            self._opencost_due = now + min(_RETRY_S, self.interval_s)
            log.warning("the OpenCost query failed; the last prices stay in use", extra={"cause": str(failure)})
            return
        self._opencost_due = now + self.interval_s
        if prices != (self.sources.opencost or {}):
            self.sources = replace(self.sources, opencost=prices)
            self.changed()
