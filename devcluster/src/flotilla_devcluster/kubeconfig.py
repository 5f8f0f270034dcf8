"""Kubeconfig files: read, written self-contained (certificates inside, no paths), and found.

`existing` is the kubeconfig of USE_EXISTING_CLUSTER, with which the tests run on a cluster that is there already.
"""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flotilla.errors import InvalidSpec, NotReady


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach an apiserver and as whom: a client certificate or a bearer token."""

    server: str
    authority: bytes = b""
    """PEM of the certificate authority; empty: the system's authorities."""
    certificate: bytes = b""
    key: bytes = b""
    token: str = ""
    insecure: bool = False


def render(access: Access, *, name: str, namespace: str = "default") -> str:
    """The YAML text of a kubeconfig with one context called `name`."""
    cluster: dict[str, str | bool] = {"server": access.server}
    if access.insecure:
        cluster["insecure-skip-tls-verify"] = True
    elif access.authority:
        cluster["certificate-authority-data"] = _encode(access.authority)
    user = (
        {"token": access.token}
        if access.token
        else {
            "client-certificate-data": _encode(access.certificate),
            "client-key-data": _encode(access.key),
        }
    )
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
        "current-context": name,
    }
    return yaml.safe_dump(document, sort_keys=False)


def write(path: Path, access: Access, *, name: str, namespace: str = "default") -> Path:
    """Write the kubeconfig, readable by its owner only."""
    return write_private(path, render(access, name=name, namespace=namespace).encode())


def load(path: Path) -> Access:
    """The current context of a kubeconfig file.

    Raises InvalidSpec for a missing context and for the kinds of credentials that need a program or a login.
    """
    document = yaml.safe_load(path.read_text())
    current = document.get("current-context") or ""
    context = _named(document, "contexts", current, path)["context"]
    cluster = _named(document, "clusters", context["cluster"], path)["cluster"]
    user = _named(document, "users", context["user"], path)["user"]
    if "exec" in user or "auth-provider" in user:
        raise InvalidSpec(
            f"The user {context['user']!r} of {path} logs in through a program. Give a kubeconfig with a"
            " token or a client certificate.",
            field="users",
        )
    base = path.parent
    return Access(
        server=cluster["server"].rstrip("/"),
        authority=_data(cluster, "certificate-authority", base),
        certificate=_data(user, "client-certificate", base),
        key=_data(user, "client-key", base),
        token=user.get("token", "") or _token_file(user, base),
        insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
    )


def write_private(path: Path, data: bytes) -> Path:
    """Write a file that only its owner can read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    return path


def existing(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The kubeconfig of a cluster that is there, when USE_EXISTING_CLUSTER (envtest's name) asks for it.

    Raises InvalidSpec when it is asked for and no kubeconfig is found.
    """
    wanted = environ.get("USE_EXISTING_CLUSTER", "").strip().lower()
    if wanted in {"", "0", "false", "no"}:
        return None
    if wanted not in {"1", "true", "yes"}:
        raise InvalidSpec(f"USE_EXISTING_CLUSTER is {wanted!r}. Set it to true or false.", field="USE_EXISTING_CLUSTER")
    names = [name for name in environ.get("KUBECONFIG", "").split(os.pathsep) if name]
    path = Path(names[0]) if names else Path(environ.get("HOME", "~")).expanduser() / ".kube" / "config"
    if not path.is_file():
        raise NotReady(
            f"USE_EXISTING_CLUSTER is set, but the kubeconfig {path} does not exist. Set KUBECONFIG to the"
            " file of the cluster."
        )
    return path


def _named(document: dict[str, Any], section: str, name: str, path: Path) -> dict[str, Any]:
    for item in document.get(section) or []:
        if item.get("name") == name:
            found: dict[str, Any] = item
            return found
    raise InvalidSpec(f"{path} has no entry {name!r} under {section}; set its current-context.", field=section)


def _data(section: dict[str, str], key: str, base: Path) -> bytes:
    if inline := section.get(f"{key}-data"):
        return base64.b64decode(inline)
    if name := section.get(key):
        return (base / name).read_bytes()
    return b""


def _token_file(user: dict[str, Any], base: Path) -> str:
    name = user.get("tokenFile")
    return (base / name).read_text().strip() if name else ""


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
