"""Support tickets for the fine-tuning loop: a task that a small model cannot do at first and learns in minutes.

A ticket names one thing that a customer wrote about, and its label is the team that answers. The held-out tickets name
only things that no training ticket names, so a model that does well on them has learned the task and not the list. Only
the standard library is imported, since the trainer's tests read this module in an environment of their own."""

import random
from collections.abc import Iterator
from typing import Any, Final

INSTRUCTION: Final = "Which team: billing, shipping, account or outage? "

LABELS: Final = ("billing", "shipping", "account", "outage")

# Things that tickets are about; the first 16 of each label are for training, the others are held out.
TRAINING_THINGS: Final = 16
THINGS: Final = {
    "billing": (
        "invoice",
        "refund",
        "credit card charge",
        "receipt",
        "payment",
        "price on my bill",
        "subscription fee",
        "discount",
        "tax on my order",
        "bank transfer",
        "double charge",
        "currency on the invoice",
        "late fee",
        "billing address",
        "annual plan cost",
        "overcharge",
        "credit note",
        "direct debit",
        "monthly fee",
        "payment method",
        "unpaid balance",
        "voucher amount",
        "VAT number",
        "cost of my plan",
    ),
    "shipping": (
        "parcel",
        "delivery",
        "package",
        "courier",
        "tracking number",
        "shipment",
        "delivery address",
        "postman",
        "damaged box",
        "customs form",
        "delivery date",
        "lost parcel",
        "shipping label",
        "pickup point",
        "late delivery",
        "freight",
        "delivery van",
        "parcel locker",
        "shipping time",
        "missing package",
        "delivery window",
        "postal code for delivery",
        "shipped order",
        "express delivery",
    ),
    "account": (
        "password",
        "login",
        "username",
        "email address of my profile",
        "two-factor code",
        "profile picture",
        "locked account",
        "sign-up",
        "verification email",
        "security question",
        "user role",
        "account deletion",
        "sign-in",
        "display name",
        "password reset",
        "authenticator app",
        "new password",
        "login name",
        "my profile",
        "account settings",
        "sign-in code",
        "user permissions",
        "recovery email",
        "second user",
    ),
    "outage": (
        "website",
        "server",
        "error 500",
        "slow page",
        "app crash",
        "time-out",
        "blank screen",
        "API",
        "downtime",
        "database error",
        "broken link",
        "connection",
        "error message",
        "service status",
        "crash",
        "frozen screen",
        "error 503",
        "dashboard that does not load",
        "crashing app",
        "server error",
        "slow website",
        "API error",
        "page that hangs",
        "broken connection",
    ),
}

PHRASINGS: Final = (
    "I have a problem with the {thing}.",
    "Can you please look at the {thing}?",
    "There is something wrong: {thing}.",
    "Hello, I am writing about the {thing}, thanks for your help.",
)


def ticket(label: str, number: int, phrasing: int) -> dict[str, Any]:
    """One ticket as a chat with the right answer."""
    text = PHRASINGS[phrasing].format(thing=THINGS[label][number])
    return {
        "messages": [{"role": "user", "content": INSTRUCTION + text}, {"role": "assistant", "content": label}],
    }


def training_tickets(seed: int = 0) -> list[dict[str, Any]]:
    """All 256 training tickets, shuffled."""
    return _shuffled(range(TRAINING_THINGS), range(len(PHRASINGS)), seed)


def held_out_tickets(seed: int = 0) -> list[dict[str, Any]]:
    """32 tickets about things that no training ticket names, 8 of each label."""
    return _shuffled(range(TRAINING_THINGS, len(THINGS["billing"])), None, seed)


def label_of(text: str) -> str | None:
    """The right label of a ticket's text, which the stand-in for a hosted model answers; None for another text."""
    best = max(
        ((len(thing), label) for label, things in THINGS.items() for thing in things if _names(text, thing)),
        default=None,
    )
    return best[1] if best else None


def _names(text: str, thing: str) -> bool:
    return any(phrasing.format(thing=thing) in text for phrasing in PHRASINGS)


def _shuffled(things: range, phrasings: range | None, seed: int) -> list[dict[str, Any]]:
    tickets = list(_tickets(things, phrasings))
    random.Random(seed).shuffle(tickets)
    return tickets


def _tickets(things: range, phrasings: range | None) -> Iterator[dict[str, Any]]:
    for label in LABELS:
        for number in things:
            for phrasing in phrasings if phrasings is not None else (number % len(PHRASINGS),):
                yield ticket(label, number, phrasing)
