"""Where weights come from: `hf://OWNER/NAME`, `s3://`, `gs://`, `oci://IMAGE`, `pvc://CLAIM/PATH`."""

from dataclasses import dataclass

MODEL_PATH = "/models"
"""Where a volume with weights is mounted."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed spec.model.source; the CRD's rule has accepted its form."""

    scheme: str
    rest: str

    @property
    def hub_id(self) -> str:
        """OWNER/NAME for the catalogue; empty for what is not the hub's."""
        return self.rest if self.scheme == "hf" else ""

    @property
    def claim(self) -> str:
        """The PersistentVolumeClaim."""
        return self.rest.partition("/")[0]

    @property
    def path(self) -> str:
        """What the engine is told to load."""
        if self.scheme == "hf":
            return self.rest
        if self.scheme == "oci":
            return MODEL_PATH
        if self.scheme == "pvc":
            inner = self.rest.partition("/")[2]
            return f"{MODEL_PATH}/{inner}" if inner else MODEL_PATH
        return f"{self.scheme}://{self.rest}"

    @property
    def object_store(self) -> bool:
        """Whether the engine streams the weights from a bucket."""
        return self.scheme in ("s3", "gs")

    @property
    def local(self) -> bool:
        """Whether the weights lie in a volume of the pod."""
        return self.scheme in ("oci", "pvc")


def parse(source: str) -> Source:
    """Split at `://`."""
    scheme, _, rest = source.partition("://")
    return Source(scheme, rest)
