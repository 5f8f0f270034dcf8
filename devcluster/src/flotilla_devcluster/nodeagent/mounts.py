"""Volumes for a process that sees the whole machine: a path below a mountPath means the volume's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
