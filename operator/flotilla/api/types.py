"""Types that the resources share: strings with bounds, money, quantities, list-maps, metadata, conditions, Secrets."""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema


class Model(BaseModel):
    """Reads what the apiserver sends. Unknown fields are ignored: the CRD may be newer than the operator."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe each property by the docstring below its attribute.

        pydantic's `use_attribute_docstrings` would read the source of every model whenever the operator, a gateway
        or a command starts, which is a tenth of its start; only the CRD generator wants them.
        """
        schema = dict(handler(core))
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in _attribute_docstrings(cls).items():
            properties[cls.model_fields[name].alias or name]["description"] = text
        return schema


def _attribute_docstrings(cls: type) -> dict[str, str]:
    """The string below each attribute, by its name, those of base classes included."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if owner is Model or not issubclass(owner, Model):
            continue
        try:
            source = inspect.getsource(owner)
        except OSError:  # made at run time
            continue
        for attribute, below in pairwise(cast("ast.ClassDef", ast.parse(textwrap.dedent(source)).body[0]).body):
            match attribute, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                    found[name] = inspect.cleandoc(text)
    return found


@dataclass(frozen=True, slots=True)
class Marker:
    """Adds to the JSON schema of what it annotates; has no meaning when objects are read."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = dict(handler(core))
        self.extend(schema)
        return schema

    def extend(self, schema: dict[str, Any]) -> None:
        """Add the extension."""
        raise TypeError(f"{type(self).__name__} adds nothing")


@dataclass(frozen=True, slots=True)
class Cel(Marker):
    """A validation rule of the CRD. (A messageExpression with a number in it exceeds the apiserver's cost limit.)"""

    rule: str
    message: str
    field_path: str = ""

    def extend(self, schema: dict[str, Any]) -> None:
        """Append to x-kubernetes-validations."""
        result = {"rule": self.rule, "message": self.message}
        if self.field_path:
            result["fieldPath"] = self.field_path
        schema["x-kubernetes-validations"] = [*schema.get("x-kubernetes-validations", ()), result]


@dataclass(frozen=True, slots=True)
class ListMap(Marker):
    """A list whose items are known by these keys, so that two managers can own different items."""

    keys: tuple[str, ...]
    max_items: int

    def extend(self, schema: dict[str, Any]) -> None:
        """Set the list's type, keys and bound."""
        schema |= {
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": list(self.keys),
            "maxItems": self.max_items,
        }


@dataclass(frozen=True, slots=True)
class ListSet(Marker):
    """A list of distinct scalars."""

    max_items: int

    def extend(self, schema: dict[str, Any]) -> None:
        """Set the list's type and bound."""
        schema |= {"x-kubernetes-list-type": "set", "maxItems": self.max_items}


@dataclass(frozen=True, slots=True)
class Atomic(Marker):
    """A list, or a map of labels, that is replaced as a whole."""

    max_items: int

    def extend(self, schema: dict[str, Any]) -> None:
        """Set the type and bound of the list or map."""
        if schema["type"] == "array":
            schema |= {"x-kubernetes-list-type": "atomic", "maxItems": self.max_items}
        else:
            schema |= {"x-kubernetes-map-type": "atomic", "maxProperties": self.max_items}


@dataclass(frozen=True, slots=True)
class Preserve(Marker):
    """An object of Kubernetes' own that we pass on; the apiserver judges it with the child."""

    def extend(self, schema: dict[str, Any]) -> None:
        """Leave the object's content open."""
        schema.pop("additionalProperties", None)
        schema["x-kubernetes-preserve-unknown-fields"] = True


DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

DnsLabel = Annotated[str, StringConstraints(pattern=DNS_LABEL, min_length=1, max_length=63)]
DnsSubdomain = Annotated[str, StringConstraints(pattern=DNS_SUBDOMAIN, min_length=1, max_length=253)]
Quantity = Annotated[str, StringConstraints(pattern=QUANTITY, min_length=1, max_length=20)]
Usd = Annotated[
    str,
    StringConstraints(pattern=r"^(0\.[0-9]*[1-9][0-9]*|[1-9][0-9]*(\.[0-9]+)?)$", min_length=1, max_length=20),
]
"""A positive decimal number of US dollars."""
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]


class ConditionStatus(StrEnum):
    """Of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ObjectMeta(Model):
    """The part of metadata that decisions need."""

    name: str
    namespace: str
    uid: str
    generation: int = 0


class Condition(Model):
    """metav1.Condition."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)]
    """type of the condition, such as Ready."""
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
    """message describes the state, and what to do where something can be done."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition without its times. `status` is True, False or Unknown."""

    type: str
    status: str
    reason: str
    message: str


def set_conditions(
    existing: Sequence[Mapping[str, Any]], verdicts: Iterable[Verdict], *, generation: int, now: str
) -> list[dict[str, Any]]:
    """The conditions with those of `verdicts` set, sorted by type. `now` (RFC 3339) is used where a status changes."""
    merged = {c["type"]: dict(c) for c in existing}
    for verdict in verdicts:
        old = merged.get(verdict.type)
        since = old["lastTransitionTime"] if old is not None and old["status"] == verdict.status else now
        merged[verdict.type] = {
            "type": verdict.type,
            "status": verdict.status,
            "observedGeneration": generation,
            "lastTransitionTime": since,
            "reason": verdict.reason,
            "message": verdict.message,
        }
    return [merged[type_] for type_ in sorted(merged)]


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


_SUFFIXES = {
    "m": Decimal("0.001"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
}


def amount(text: str) -> Decimal | None:
    """The value of a Kubernetes quantity; None for anything else."""
    number = text.rstrip("mkKMGTPi")
    try:
        return Decimal(number) * _SUFFIXES.get(text[len(number) :], Decimal(1))
    except ArithmeticError:
        return None
