"""Pods that are reached by another address than their own.

Empty in a cluster. The local control plane gives pods addresses of 10.244.0.0/16 (loopback ones are not allowed in
EndpointSlices) while their processes listen on the loopback twin 127.244.0.0/16.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

from flotilla.errors import InvalidSpec


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
                raise _wrong(item, str(error)) from error
            if not (isinstance(source, IPv4Network) and isinstance(target, IPv4Network)):
                raise _wrong(item, "both must be IPv4")
            if source.prefixlen != target.prefixlen:
                raise _wrong(item, "both must have the same prefix length")
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


def _wrong(item: str, why: str) -> InvalidSpec:
    return InvalidSpec(
        f"{item!r} is not CIDR=CIDR ({why}). An example is 10.244.0.0/16=127.244.0.0/16.",
        field="pod_address_map",
    )
