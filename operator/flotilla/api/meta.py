"""Metadata and conditions, as far as Flotilla reads them."""

from typing import Annotated

from pydantic import Field, StringConstraints

from flotilla.api.types import ConditionStatus, Model


class ObjectMeta(Model):
    """The part of metadata that decisions need."""

    name: str
    namespace: str
    uid: str
    generation: int = 0


class Condition(Model):
    """metav1.Condition."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)]
    """type says what is judged, such as Ready."""
    status: ConditionStatus
    """status is True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)]
    """observedGeneration is the metadata.generation that was judged."""
    last_transition_time: Annotated[
        str, StringConstraints(max_length=40), Field(json_schema_extra={"format": "date-time"})
    ]
    """lastTransitionTime is when status changed last."""
    reason: Annotated[
        str,
        StringConstraints(pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", min_length=1, max_length=1024),
    ]
    """reason is a CamelCase constant; the documentation lists them."""
    message: Annotated[str, StringConstraints(max_length=32768)]
    """message says what is so, and what to do where something can be done."""
