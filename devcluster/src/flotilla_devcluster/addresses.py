"""Where this machine finds the addresses of the simulated cluster."""

POD_NETWORK = "10.244"
LOOPBACK = "127"
"""All of 127/8 is loopback on Linux: a pod 10.244.1.5 listens on 127.244.1.5, and no two fight for a port."""


def local_address(address: str) -> str:
    """Where this machine finds a pod's or Service's address."""
    return f"{LOOPBACK}.{address.partition('.')[2]}"


POD_ADDRESS_MAP = f"{POD_NETWORK}.0.0/16={local_address(POD_NETWORK)}.0.0/16"
"""The same for the operator and the gateway, as their setting wants it."""
