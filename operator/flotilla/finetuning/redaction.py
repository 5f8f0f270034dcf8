"""Removes personal data and secrets from texts by rules. Pure.

A match is replaced by a placeholder with the rule's name, such as `[Email]`, so that a model still learns the shape of
the sentence. The rules find what has a form: addresses, numbers with check digits, keys. Names of people and places
have none; a policy that must not keep those does not capture their data class."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from flotilla.api.routing_policy import RedactionRule

_DIGITS: Final = re.compile(r"\D")


def _passes_luhn(text: str) -> bool:
    """Whether the digits of `text` have the check digit of payment cards."""
    digits = [int(digit) for digit in _DIGITS.sub("", text)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban_length(text: str) -> int:
    """Length of the longest beginning of `text` with the check digits of an IBAN (ISO 7064); 0 for none."""
    for end in range(len(text), 14, -1):
        compact = re.sub(r"[ -]", "", text[:end]).upper()
        cut_within_a_word = end < len(text) and text[end].isalnum()
        if cut_within_a_word or not text[end - 1].isalnum() or not 15 <= len(compact) <= 34:
            continue
        if int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1:
            return end
    return 0


def _is_phone_number(text: str) -> bool:
    return 7 <= len(_DIGITS.sub("", text)) <= 15


def _whole(holds: Callable[[str], bool]) -> Callable[[str], int]:
    """A match that counts as a whole or not at all."""
    return lambda text: len(text) if holds(text) else 0


# In the order of application: a rule sees what the rules before it have left. Repetitions are bounded.
_RULES: Final[Mapping[RedactionRule, tuple[re.Pattern[str], Callable[[str], int]]]] = {
    RedactionRule.SECRET: (
        re.compile(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]{0,8000}?-----END [A-Z ]{0,40}PRIVATE KEY-----"
            r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
            r"|\b(?:sk|pk|rk|ghp|gho|ghs|ghu|glpat|xox[abprs]|hf|AKIA|ASIA|AIza)[-_]?[A-Za-z0-9][A-Za-z0-9_-]{14,}"
            r"|(?i:\bbearer )[A-Za-z0-9._~+/-]{16,}=*"
            r"|(?i:\b(?:password|passwd|secret|api[-_ ]?key|token)\b[\"']?\s{0,3}[:=]\s{0,3}[\"']?)[^\s\"',;]{4,200}"
        ),
        len,
    ),
    RedactionRule.EMAIL: (
        re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"),
        len,
    ),
    RedactionRule.IBAN: (re.compile(r"\b[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}(?![A-Za-z0-9])"), _iban_length),
    RedactionRule.CREDIT_CARD: (re.compile(r"(?<![0-9])[0-9](?:[ -]?[0-9]){12,18}(?![0-9])"), _whole(_passes_luhn)),
    RedactionRule.IP_ADDRESS: (
        re.compile(
            r"(?<![0-9.])(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(?![0-9.])"
            r"|(?<![0-9A-Fa-f:])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6}(?![0-9A-Fa-f:])"
        ),
        len,
    ),
    RedactionRule.PHONE_NUMBER: (
        re.compile(r"(?<![0-9A-Za-z+])(?:\+|00)[0-9](?:[ ()./-]{0,2}[0-9]){6,14}(?![0-9])|"
                   r"(?<![0-9A-Za-z.])\(?0[0-9]{1,4}\)?[ /-][0-9](?:[ /-]?[0-9]){4,10}(?![0-9])|"
                   r"(?<![0-9A-Za-z.])\(?[2-9][0-9]{2}\)?[ .-][0-9]{3}[ .-][0-9]{4}(?![0-9])"),
        _whole(_is_phone_number),
    ),
}  # fmt: skip


def redact(text: str, rules: Iterable[RedactionRule]) -> str:
    """`text` with every match of `rules` replaced by `[rule]`."""
    wanted = frozenset(rules)
    for rule, (pattern, length) in _RULES.items():
        if rule in wanted:
            text = pattern.sub(partial(_replace, f"[{rule.value}]", length), text)
    return text


def _replace(placeholder: str, length: Callable[[str], int], match: re.Match[str]) -> str:
    found = match[0]
    end = length(found)
    return placeholder + found[end:] if end else found


def redact_json(value: Any, rules: Sequence[RedactionRule]) -> Any:
    """A copy of a JSON value in which every string is redacted, keys of objects included."""
    if not rules:
        return value
    if isinstance(value, str):
        return redact(value, rules)
    if isinstance(value, dict):
        return {redact(key, rules): redact_json(item, rules) for key, item in value.items()}
    if isinstance(value, list):
        return [redact_json(item, rules) for item in value]
    return value
