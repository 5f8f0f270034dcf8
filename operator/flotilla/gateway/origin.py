"""Where a target is, and that nothing but a permitted target's own place is dialled."""

from dataclasses import dataclass

from flotilla.routing.decide import Permit, SovereigntyBreach


@dataclass(frozen=True, eq=False, slots=True)
class Origin:
    """Where a target's requests are sent: an endpoint of a ModelDeployment, or a hosted API's host.

    Compared by identity: each endpoint and each hosted API has one, and it is looked up for every request.
    """

    owner: str
    """Name of the ModelDeployment, or the base URL: what a Permit's target must be."""
    host: str
    """An address of a pod, or the host name of a hosted API."""
    port: int
    tls: bool = False
    hosted: bool = False
    keep_s: float = 4.0
    """A connection is not used again after so long: uvicorn, in vLLM and SGLang, closes idle ones after 5 s."""

    @property
    def authority(self) -> str:
        """For the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def check(permit: Permit, origin: Origin) -> None:
    """The last gate before a socket; raises SovereigntyBreach."""
    target = permit.target
    place = target.hosted.base_url if target.hosted else target.cluster.model_deployment if target.cluster else None
    if target.name not in permit.allowed or place != origin.owner or origin.hosted != (target.hosted is not None):
        raise SovereigntyBreach(f"{origin.owner!r} is not the place of the permitted target {target.name!r}.")
