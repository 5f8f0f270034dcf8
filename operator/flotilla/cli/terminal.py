"""Text of others on a terminal: names come from a cluster or a Prometheus, and control characters would be obeyed."""

import unicodedata


def plain(text: str) -> str:
    """The text with control, format and bidirectional characters written out, as in `\\x1b`."""
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"):
        return character.encode("unicode_escape", errors="backslashreplace").decode()
    return character
