"""ConfigMaps and Secrets become files that change in one step."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from flotilla.errors import FlotillaError, NotReady, Transient
from flotilla.kube.kinds import CONFIG_MAP, SECRET, Kind
from flotilla_devcluster.nodeagent.container import real_program
from flotilla_devcluster.nodeagent.volumes import Volumes


class Cluster:
    """Stands for KubeClient."""

    def __init__(self, **objects: dict[str, str]) -> None:
        self.objects = objects
        self.failure: FlotillaError | None = None

    async def get(self, kind: Kind, name: str, *, namespace: str) -> dict[str, Any] | None:
        if self.failure:
            raise self.failure
        data = self.objects.get(name)
        if data is None:
            return None
        secret = kind.kind == "Secret"
        return {"data": {k: base64.b64encode(v.encode()).decode() if secret else v for k, v in data.items()}}


def volumes(client: Any, folder: Path, *sources: dict[str, Any]) -> Volumes:
    volume = {"name": "config", "projected": {"sources": list(sources)}}
    return Volumes(client, {"metadata": {"namespace": "team"}, "spec": {"volumes": [volume]}}, folder)


DOCUMENT = {"configMap": {"name": "document", "items": [{"key": "document.json", "path": "document.json"}]}}
KEY = {"secret": {"name": "provider", "optional": True, "items": [{"key": "k", "path": "keys/provider/key"}]}}


async def test_files_are_where_items_say_and_follow_changes(tmp_path: Path) -> None:
    cluster = Cluster(document={"document.json": "1"}, provider={"k": "secret"})
    mounted = volumes(cluster, tmp_path, DOCUMENT, KEY)
    await mounted.fill()
    assert (tmp_path / "config/document.json").read_text() == "1"
    assert (tmp_path / "config/keys/provider/key").read_text() == "secret"
    inode = (tmp_path / "config/document.json").stat().st_ino
    await mounted.fill()
    assert (tmp_path / "config/document.json").stat().st_ino == inode
    cluster.objects = {"document": {"document.json": "2"}}
    await mounted.fill()
    assert (tmp_path / "config/document.json").read_text() == "2"
    assert not (tmp_path / "config/keys").exists()


async def test_a_mounted_object_that_changes_is_written_again_and_no_other_is_read(tmp_path: Path) -> None:
    cluster = Cluster(document={"document.json": "1"})
    mounted = volumes(cluster, tmp_path, DOCUMENT, KEY)
    await mounted.fill()
    following = asyncio.create_task(mounted.follow())
    try:
        cluster.objects = {"document": {"document.json": "2"}, "provider": {"k": "secret"}}
        for kind, namespace, name in (
            (CONFIG_MAP, "team", "other"),
            (CONFIG_MAP, "another-team", "document"),
            (CONFIG_MAP, "team", "provider"),
        ):
            mounted.changed(kind, {"metadata": {"namespace": namespace, "name": name}})
        await asyncio.sleep(0.01)
        assert (tmp_path / "config/document.json").read_text() == "1"
        mounted.changed(SECRET, {"metadata": {"namespace": "team", "name": "provider"}})
        await asyncio.sleep(0.01)
        assert (tmp_path / "config/document.json").read_text() == "2"
        assert (tmp_path / "config/keys/provider/key").read_text() == "secret"
    finally:
        following.cancel()


async def test_a_volume_outlives_the_loss_of_its_object_and_an_apiserver_that_is_away(tmp_path: Path) -> None:
    cluster = Cluster(document={"document.json": "1"})
    mounted = volumes(cluster, tmp_path, DOCUMENT)
    await mounted.fill()
    following = asyncio.create_task(mounted.follow())
    document = {"metadata": {"namespace": "team", "name": "document"}}
    try:
        cluster.objects = {}
        mounted.changed(CONFIG_MAP, document)
        await asyncio.sleep(0.01)
        assert (tmp_path / "config/document.json").read_text() == "1"
        cluster.failure = Transient("no answer")
        mounted.changed(CONFIG_MAP, document)
        await asyncio.sleep(0.01)
        cluster.failure, cluster.objects = None, {"document": {"document.json": "2"}}
        async with asyncio.timeout(5):
            while (tmp_path / "config/document.json").read_text() != "2":
                await asyncio.sleep(0.05)
    finally:
        following.cancel()


async def test_what_is_not_optional_is_waited_for_with_the_kubelets_message(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match='configmap "document" not found'):
        await volumes(Cluster(), tmp_path, DOCUMENT).fill()
    with pytest.raises(NotReady, match="non-existent configmap key"):
        await volumes(Cluster(document={}), tmp_path, DOCUMENT).fill()
    await volumes(Cluster(document={"document.json": "1"}), tmp_path, DOCUMENT, KEY).fill()


def test_our_own_image_is_our_own_program() -> None:
    image, gateway = "ghcr.io/flotilla-dev/flotilla:0.1.0", ["gateway", "--listen", "0.0.0.0:8000"]
    assert (real_program(image, gateway, {}) or [])[1:] == ["-m", "flotilla"]
    assert (real_program(image, ["operator"], {}) or [])[1:] == ["-m", "flotilla"]
    assert real_program(image, ["status"], {}) is None
    assert real_program(image, gateway, {"ghcr.io/flotilla-dev/": ("other",)}) == ["other"]
    assert real_program("example.com/flotilla-ui:1", gateway, {}) is None
