"""Volumes for a container's process, which sees the whole machine.

`Volumes` writes ConfigMaps, Secrets and annotations of the pod as files below the pod's folder and replaces them in one
step when they change, as the kubelet does. `Mounts` translates a path below a container's mountPath into the volume's
folder.
"""

import asyncio
import base64
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flotilla.errors import FlotillaError, NotReady
from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import CONFIG_MAP, SECRET, Kind

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_DATA = "..data"

Files = dict[str, bytes]


class Volumes:
    """The volumes of one pod, each below `folder` by its name."""

    def __init__(self, client: KubeClient, pod: Mapping[str, Any], folder: Path) -> None:
        self._client = client
        self._namespace = pod["metadata"]["namespace"]
        self._folder = folder
        self._sources = {volume["name"]: list(_sources(volume)) for volume in pod["spec"].get("volumes") or ()}
        self._of_pod = {
            volume["name"]: {
                item["path"]: _field(pod, item["fieldRef"]["fieldPath"])
                for item in volume["downwardAPI"].get("items", ())
            }
            for volume in pod["spec"].get("volumes") or ()
            if "downwardAPI" in volume
        }
        self._written: dict[str, Files] = {}
        self._stale = asyncio.Event()
        self._filling = asyncio.Lock()

    async def fill(self) -> None:
        """Write what changed; raises NotReady with the kubelet's message when a Secret or ConfigMap is missing."""
        async with self._filling:  # Otherwise an older reading could be written last.
            for volume, sources in self._sources.items():
                files: Files = dict(self._of_pod.get(volume, {}))
                for kind, source in sources:
                    files |= await self._read(kind, source)
                if (sources or files) and self._written.get(volume) != files:
                    _swap(self._folder / volume, files, len(self._written.get(volume, ())))
                    self._written[volume] = files

    def changed(self, kind: Kind, obj: Mapping[str, Any]) -> None:
        """A ConfigMap or Secret of any pod came, changed or went."""
        meta = obj["metadata"]
        used = {(of, _name(source)) for sources in self._sources.values() for of, source in sources}
        if meta["namespace"] == self._namespace and (kind, meta["name"]) in used:
            self._stale.set()

    async def follow(self) -> None:
        """Write what `changed` has announced, until cancelled. (The kubelet takes up to a minute.)"""
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self.fill()
            except NotReady as missing:
                log.info("a volume stays as it is", extra={"cause": str(missing)})
            except FlotillaError as error:
                log.info("a volume is late", extra={"cause": str(error)})
                await asyncio.sleep(_RETRY_S)
                self._stale.set()

    async def _read(self, kind: Kind, source: Mapping[str, Any]) -> Files:
        secret, word = kind is SECRET, kind.kind.lower()
        name = _name(source)
        obj = await self._client.get(kind, name, namespace=self._namespace)
        if obj is None and not source.get("optional"):
            raise NotReady(f'{word} "{name}" not found')
        data: Mapping[str, str] = (obj or {}).get("data") or {}
        values = {key: base64.b64decode(value) if secret else value.encode() for key, value in data.items()}
        items = source.get("items")
        if items is None:
            return values
        missing = [item["key"] for item in items if item["key"] not in values]
        if missing and not source.get("optional"):
            raise NotReady(f"references non-existent {word} key: {missing[0]}")
        return {item["path"]: values[item["key"]] for item in items if item["key"] in values}


def _sources(volume: Mapping[str, Any]) -> Iterator[tuple[Kind, Mapping[str, Any]]]:
    for source in (volume.get("projected") or {}).get("sources") or (volume,):
        for key, kind in (("configMap", CONFIG_MAP), ("secret", SECRET)):
            if key in source:
                yield kind, source[key]


def _field(pod: Mapping[str, Any], path: str) -> bytes:
    """One annotation or label of the pod, such as metadata.annotations['key']; empty where it has none."""
    found = re.fullmatch(r"metadata\.(annotations|labels)\['(.+)'\]", path)
    values = {} if found is None else pod["metadata"].get(found[1]) or {}
    return str(values.get(found[2] if found else "", "")).encode()


def _name(source: Mapping[str, Any]) -> str:
    return str(source.get("secretName") or source["name"])


def _swap(folder: Path, files: Files, generation: int) -> None:
    """Write beside the old files, then move one link: readers see the old ones or the new ones."""
    folder.mkdir(parents=True, exist_ok=True)
    old = folder / os.readlink(folder / _DATA) if (folder / _DATA).is_symlink() else None
    number = 1 + max((int(path.name[2:]) for path in folder.glob("..[0-9]*")), default=generation)
    new = folder / f"..{number}"
    new.mkdir()
    for path, content in files.items():
        (new / path).parent.mkdir(parents=True, exist_ok=True)
        (new / path).write_bytes(content)
    link = folder / "..next"
    link.symlink_to(new.name)
    link.rename(folder / _DATA)
    wanted = {path.partition("/")[0] for path in files}
    for name in wanted:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"{_DATA}/{name}")
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in wanted:
            entry.unlink()
    if old is not None:
        shutil.rmtree(old)


class Mounts:
    """The mounts of one container: claims by their configured folder, everything else by one of the pod's own."""

    def __init__(
        self, pod: Mapping[str, Any], container: Mapping[str, Any], *, folder: Path, claims: Mapping[str, str]
    ) -> None:
        self._root = folder
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
        self._folders: dict[str, Path] = {}
        for mount in container.get("volumeMounts") or ():
            claim = (volumes.get(mount["name"], {}).get("persistentVolumeClaim") or {}).get("claimName", "")
            self._folders[mount["mountPath"]] = Path(claims[claim]) if claim in claims else folder / mount["name"]

    def make(self) -> None:
        """Create the folders."""
        for folder in self._folders.values():
            folder.mkdir(parents=True, exist_ok=True)

    def local(self, text: str) -> str:
        """`text`, with the folder in place of a mountPath that it is or begins with; files of the pod's are local."""
        if text.startswith(f"{self._root}/"):
            return text
        for path, folder in self._folders.items():
            if text == path or text.startswith(f"{path}/"):
                return f"{folder}{text[len(path) :]}"
        return text
