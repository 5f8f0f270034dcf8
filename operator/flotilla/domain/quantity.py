"""Kubernetes quantities: `16Gi`, `500m`."""

from decimal import Decimal

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
    """The value of a Kubernetes quantity; None when it is none."""
    number = text.rstrip("mkKMGTPi")
    try:
        return Decimal(number) * _SUFFIXES.get(text[len(number) :], Decimal(1))
    except ArithmeticError:
        return None
