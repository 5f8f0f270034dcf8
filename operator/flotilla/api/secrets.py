"""References to Secrets in the namespace of the resource that names them."""

from typing import Annotated

from pydantic import StringConstraints

from flotilla.api.types import DnsSubdomain, Model


class SecretKeyRef(Model):
    """One key of a Secret in the same namespace."""

    name: DnsSubdomain
    """name of the Secret, in the namespace of this resource."""
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253)]
    """key within the Secret."""


class CredentialsSecret(Model):
    """A Secret in the same namespace, and the key where one value of it is meant."""

    name: DnsSubdomain
    """name of the Secret, in the namespace of this resource."""
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253)] | None = None
    """key within the Secret. Default: token for hf, key.json for gs; s3 takes all keys, oci the pull secret's own."""
