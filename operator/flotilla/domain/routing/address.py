"""May a hosted model live at this URL? Anybody who writes a RoutingPolicy makes the gateway connect to it."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

_CLUSTER_SUFFIXES = (".svc", ".cluster.local", ".local", ".localdomain", ".internal", ".intranet", ".lan", ".home.arpa")
"""Names that resolve inside of a cluster, a cloud's own network (metadata.google.internal) or a site."""
_NUMERIC = re.compile(r"^(0[xX][0-9a-fA-F]*|[0-9]+)$")
_LABEL = re.compile(r"^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$")


def base_url_problem(url: str, *, allow_private: bool = False) -> str | None:
    """What is wrong, None where nothing is. `allow_private` is for tests whose providers are on the same machine.

    Names are judged by their spelling; where a public name resolves to is judged when it is connected to
    (`address_problem`).
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return f"{url!r} is not a URL. Write it as https://HOST/PATH."
    if any(ord(character) <= 32 or ord(character) >= 127 for character in url):
        return f"{url!r} holds blanks, control characters or letters beyond ASCII. Write the host in its ASCII form."
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        return f"{url!r} holds credentials. Put the key into a Secret and name it by secretRef."
    if parts.query or parts.fragment:
        return f"{url!r} has a query or a fragment. Only scheme, host, port and path are allowed."
    if not host or port == 0:
        return f"{url!r} names no host or port. Write it as https://HOST/PATH."
    if allow_private and parts.scheme in ("http", "https"):
        return None
    if parts.scheme != "https":
        return f"{url!r} is not https: the key and the prompts would travel in the clear."
    return _host_problem(host.rstrip("."))


def address_problem(address: str) -> str | None:
    """What is wrong with connecting to an IP address, None where it is public. For the gateway, after resolving."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return f"{address!r} is not an IP address."
    inner = _embedded(ip)
    if not ip.is_global or ip.is_multicast or (inner is not None and not inner.is_global):
        return f"{address} is not a public address."
    return None


def _host_problem(host: str) -> str | None:
    remedy = "Hosted models are public; reach models of this cluster by modelDeploymentRef."
    if ":" in host:
        wrong = address_problem(host)
        return f"{wrong} {remedy}" if wrong else None
    labels = host.split(".")
    if _NUMERIC.match(labels[-1]):
        # Resolvers read 2130706433, 0x7f.1 and 0177.0.0.1 as 127.0.0.1; only the plain form means one thing.
        if not re.fullmatch(r"(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]{0,2})){3}", host):
            return f"{host!r} is a number in a form that programs read differently. Write a host name."
        wrong = address_problem(host)
        return f"{wrong} {remedy}" if wrong else None
    if not all(_LABEL.match(label) for label in labels):
        return f"{host!r} is not a host name."
    if len(labels) == 1:
        return f"{host!r} has no domain, so it is a name of this cluster or machine. {remedy}"
    if f".{host.lower()}".endswith(_CLUSTER_SUFFIXES) or labels[-1].lower() == "localhost":
        return f"{host!r} is a name of a cluster or a private network. {remedy}"
    return None


def _embedded(ip: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to: mapped, 6to4, NAT64 or Teredo."""
    if isinstance(ip, IPv4Address):
        return None
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip.teredo is not None:
        return ip.teredo[1]
    if int(ip) >> 32 in (0x64FF9B << 64, 0):
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return None
