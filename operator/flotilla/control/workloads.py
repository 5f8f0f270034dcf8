"""The child and the pods of each ModelDeployment, reduced again only where an object is another one than before."""

from typing import Any

from flotilla.control.keys import Key
from flotilla.domain import observed
from flotilla.domain.observed import Workload
from flotilla.kube.kinds import DEPLOYMENT, POD
from flotilla.kube.store import Store


class Workloads:
    """A view of the store, which replaces objects and never changes them: those that are the same say the same."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Key, tuple[list[Any], Workload]] = {}

    def of(self, key: Key) -> Workload:
        """As the store has it now."""
        objects = [self._store.get(DEPLOYMENT, key.namespace, key.name), *self._store.owned_by(POD, key)]
        known = self._known.get(key)
        if known is not None and len(known[0]) == len(objects) and all(map(_same, known[0], objects)):
            return known[1]
        load = observed.workload(objects[0], [obj for obj in objects[1:] if obj is not None])
        self._known[key] = (objects, load)
        return load

    def forget(self, key: Key) -> None:
        """The resource is gone."""
        self._known.pop(key, None)


def _same(one: object, other: object) -> bool:
    return one is other
