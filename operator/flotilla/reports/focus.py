"""Cost as rows of FOCUS 1.2, the FinOps Foundation's format of cost data."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from flotilla.constants import GROUP, LABEL_TEAM
from flotilla.cost.spending import Spent

COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
    "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost",
    "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName",
    "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "ServiceSubcategory",
    "SkuId", "SkuMeter", "SkuPriceId", "SubAccountId", "SubAccountName", "Tags",
)  # fmt: skip
"""All that are mandatory, and those of the others that apply to accelerators which are held by the hour."""
OWN_COLUMNS = (
    "x_Model", "x_Engine", "x_IdleCost", "x_StartupCost", "x_EstimatedCost", "x_InputTokens", "x_CachedInputTokens",
    "x_OutputTokens", "x_Requests", "x_HostedModel", "x_HostedCost",
)  # fmt: skip
_UNIT = "GPU-Hours"
_PLACES = Decimal("0.000000000001")


@dataclass(frozen=True, slots=True)
class Charge:
    """What a deployment cost between two moments of one UTC month."""

    spent: Spent
    start: datetime
    end: datetime


def dump(charges: Iterable[Charge], *, account: str) -> str:
    """CSV with a heading. Left out is what has no price: a cost of 0 would be a lie, and null is not allowed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, (*COLUMNS, *OWN_COLUMNS), lineterminator="\r\n")
    writer.writeheader()
    for charge in charges:
        if charge.spent.usd is not None and charge.spent.gpu_hours:
            writer.writerow(row(charge, account=account))
    return text.getvalue()


def row(charge: Charge, *, account: str) -> Mapping[str, str | None]:
    """One line by column; None is FOCUS' null. Raises ValueError for a charge without a price or GPU-hours."""
    of = charge.spent
    if of.usd is None or not of.gpu_hours:
        raise ValueError(f"{of.namespace}/{of.name} has no price or no GPU-hours in the period.")
    first = charge.start.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    usd, hours = _number(of.usd), _number(of.gpu_hours)
    sku = f"{of.gpu_type or 'accelerator'}/hour"
    return {
        # The accelerators are on the bill of their owner: a sum over both bills must not count them twice.
        "BilledCost": "0",
        "BillingAccountId": account,
        "BillingAccountName": account,
        "BillingCurrency": "USD",
        "BillingPeriodStart": _moment(first),
        "BillingPeriodEnd": _moment(following),
        "ChargeCategory": "Usage",
        "ChargeClass": None,
        "ChargeDescription": f"{hours} GPU-hours of {of.gpu_type or 'accelerators'} held by {of.namespace}/{of.name}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _moment(charge.start),
        "ChargePeriodEnd": _moment(charge.end),
        "ConsumedQuantity": hours,
        "ConsumedUnit": _UNIT,
        "ContractedCost": usd,
        "EffectiveCost": usd,
        "InvoiceIssuerName": account,
        "ListCost": usd,
        "ListUnitPrice": _number(of.usd / of.gpu_hours),
        "PricingCategory": "Standard",
        "PricingQuantity": hours,
        "PricingUnit": _UNIT,
        "ProviderName": account,
        "PublisherName": "Flotilla",
        "ResourceId": f"modeldeployments.{GROUP}/{of.namespace}/{of.name}",
        "ResourceName": of.name,
        "ResourceType": "ModelDeployment",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Flotilla model serving",
        "ServiceSubcategory": "Generative AI",
        "SkuId": sku,
        "SkuMeter": "Accelerator time",
        "SkuPriceId": sku,
        "SubAccountId": of.namespace,
        "SubAccountName": of.namespace,
        "Tags": json.dumps({LABEL_TEAM: of.team} if of.team else {}),
        **_own(of),
    }


def _own(of: Spent) -> dict[str, str | None]:
    hosted = min(of.hosted_usd.items(), key=lambda pair: (pair[1], pair[0]), default=None)
    return {
        "x_Model": of.model or None,
        "x_Engine": of.engine or None,
        "x_IdleCost": _optional(of.usd_by_state.get("idle")),
        "x_StartupCost": _optional(of.usd_by_state.get("startup")),
        "x_EstimatedCost": _optional(of.estimated_usd),
        "x_InputTokens": _optional(of.tokens.get("input")),
        "x_CachedInputTokens": _optional(of.tokens.get("cached_input")),
        "x_OutputTokens": _optional(of.tokens.get("output")),
        "x_Requests": _optional(of.requests),
        "x_HostedModel": hosted[0] if hosted else None,
        "x_HostedCost": _optional(hosted[1] if hosted else None),
    }


def _optional(value: Decimal | None) -> str | None:
    return None if value is None else _number(value)


def _number(value: Decimal) -> str:
    """Plain decimal notation without trailing zeros."""
    return f"{value.quantize(_PLACES).normalize():f}"


def _moment(of: datetime) -> str:
    return of.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
