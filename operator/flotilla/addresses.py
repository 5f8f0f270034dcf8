"""Addresses: base URLs of servers that an administrator names, and the map of pod addresses of the local cluster."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from flotilla.errors import InvalidSpec

_ODD_CHARACTER = re.compile(r"[^\x21-\x7e]|[\\<>\"'`{}|^]")
_METADATA_V6 = IPv6Address("fd00:ec2::254")
_AN_IPV4_FORM = re.compile(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+)){0,3}", re.IGNORECASE)
"""All that C's inet_aton reads as an address: decimal, octal and hexadecimal, with one to four parts."""


def base_url(text: str, *, field: str) -> str:
    """`http(s)://host[:port][/path]` without a slash at its end.

    Refused are credentials inside of the address, which would show up in logs, and link-local addresses, where clouds
    hand out the node's credentials. Raises InvalidSpec.
    """
    if _ODD_CHARACTER.search(text):
        raise _wrong(text, "it holds a space or another character that no address has", field)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _wrong(text, str(error), field) from error
    if parts.scheme not in ("http", "https"):
        raise _wrong(text, "it must start with http:// or https://", field)
    if not host or port == 0:
        raise _wrong(text, "it names no host or port", field)
    if "@" in parts.netloc:
        raise InvalidSpec(f"{field} holds a user name or password; put the token into a file instead.", field=field)
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise _wrong(text, "it has a query or fragment: only the address of the server is wanted", field)
    _check_host(text, host, field)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _check_host(text: str, host: str, field: str) -> None:
    try:
        address = ip_address(host.rstrip("."))
    except ValueError:
        if _AN_IPV4_FORM.fullmatch(host.rstrip(".")):
            raise _wrong(text, "the address is in a form other than four decimal numbers", field) from None
        return
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = IPv4Address(address.ipv4_mapped)
    if address.is_link_local or address.is_multicast or address.is_unspecified or address == _METADATA_V6:
        raise _wrong(text, "it is a link-local, multicast or unspecified address, where no such server is", field)


def _wrong(text: str, why: str, field: str) -> InvalidSpec:
    return InvalidSpec(
        f"{field} {text!r} is not usable: {why}. An example is http://prometheus.monitoring.svc:9090.", field=field
    )


@dataclass(frozen=True, slots=True)
class AddressMap:
    """Networks and their twins; host bits are kept."""

    pairs: tuple[tuple[IPv4Network, IPv4Network], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "AddressMap":
        """Read `CIDR=CIDR[,CIDR=CIDR]`; raises InvalidSpec."""
        pairs = []
        for item in filter(None, (part.strip() for part in text.split(","))):
            left, _, right = item.partition("=")
            try:
                source, target = ip_network(left), ip_network(right)
            except ValueError as error:
                raise _bad_map(item, str(error)) from error
            if not (isinstance(source, IPv4Network) and isinstance(target, IPv4Network)):
                raise _bad_map(item, "both must be IPv4")
            if source.prefixlen != target.prefixlen:
                raise _bad_map(item, "both must have the same prefix length")
            pairs.append((source, target))
        return cls(tuple(pairs))

    def translate(self, address: str) -> str:
        """Where to connect for a pod's address."""
        if not self.pairs:
            return address
        ip = ip_address(address)
        for source, target in self.pairs:
            if ip in source:
                return str(IPv4Address(int(target.network_address) + int(ip) - int(source.network_address)))
        return address


def _bad_map(item: str, why: str) -> InvalidSpec:
    return InvalidSpec(
        f"{item!r} is not CIDR=CIDR ({why}). An example is 10.244.0.0/16=127.244.0.0/16.",
        field="pod_address_map",
    )
