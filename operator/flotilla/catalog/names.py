"""From what people type to a checkpoint: hub links, ids without an owner, Ollama's names, typos. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

_HUB_HOSTS = r"(?:www\.)?(?:huggingface\.co|hf\.co)"
_LINK = re.compile(rf"^(?:https?://)?{_HUB_HOSTS}/(?:models/)?(?P<id>[\w.-]+/[\w.-]+?)(?:[:/?#].*)?$", re.IGNORECASE)
_FORMER_OWNERS = {
    "neuralmagic": "redhatai",
    "thudm": "zai-org",
    "cohereforai": "coherelabs",
    "01ai": "01-ai",
    "meta": "meta-llama",
}
"""Owners that were renamed on the hub, which redirects from the former name; and slips of the pen."""
_WITHOUT_MEANING = frozenset({"instruct", "it", "chat", "meta", "hf", "latest", "text", "bf16", "fp16", "preview"})
"""Words of a name that Ollama and people leave out."""
_QUANTIZED = frozenset(
    {"awq", "gptq", "gguf", "fp8", "nvfp4", "mxfp4", "fp4", "bnb", "4bit", "8bit", "w4a16", "w8a8", "w8a16", "int4"}
    | {"int8", "quantized", "dynamic", "unsloth", "block"}
)
_COPIES = frozenset({"unsloth", "mradermacher", "bartowski", "lmstudio-community", "ggml-org", "thebloke", "redhatai"})
"""Owners that publish copies of others' models; they are not meant where no owner is named."""
_GGUF_TAG = re.compile(r"^(i?q\d\w*|[fb]f?16|k|m|s|l|xl|0|1)$")
_NEAR = 5
_LIKE = 0.72
"""How alike two names must be to be offered, of 1."""


@dataclass(frozen=True, slots=True)
class NameMatch:
    """`id` is the checkpoint that was meant; "" where that is open, and then `near` has the most alike first."""

    id: str
    near: tuple[str, ...] = ()

    @property
    def hint(self) -> str:
        """A sentence that offers the near names; empty where there are none."""
        return f"Did you mean {_listed(self.near)}?" if self.near and not self.id else ""


def hub_id(typed: str) -> str:
    """OWNER/NAME of a link to the hub or of hf://OWNER/NAME; anything else as it is, without blanks around it."""
    text = typed.strip().rstrip("/")
    if text.lower().startswith("hf://"):
        text = text[5:]
    link = _LINK.match(text)
    return link["id"] if link else text


def spellings(name: str) -> tuple[str, ...]:
    """The name in lower case, and as it is since its owner was renamed."""
    lower = name.lower()
    owner, slash, rest = lower.partition("/")
    if not slash:
        return (lower,)
    found = [lower]
    if owner in _FORMER_OWNERS:
        found.append(f"{_FORMER_OWNERS[owner]}/{rest}")
    if owner == "nvidia" and rest.endswith("-fp4"):
        found.append(f"{owner}/{rest.removesuffix('-fp4')}-nvfp4")
    if owner == "meta-llama":
        found.append(f"{owner}/{rest.removeprefix('meta-') if rest.startswith('meta-') else 'meta-' + rest}")
    return tuple(found)


def match(typed: str, known: Mapping[str, tuple[str, str]]) -> NameMatch:
    """Find `typed` among checkpoints: lower-case id -> (row, id), the rows with official owners first.

    An id without its owner, and a name that leaves out words such as instruct, count as found where only one
    checkpoint in 16 bits can be meant; everything else is only offered.
    """
    text = hub_id(typed)
    if not text or "://" in text:
        return NameMatch("")
    for spelling in spellings(text):
        if spelling in known:
            return NameMatch(known[spelling][1])
    without_owner = "/" not in text
    if without_owner:
        same = [name for lower, (_, name) in known.items() if lower.rpartition("/")[2] == text.lower()]
        if same:
            return NameMatch(same[0])
    wanted = _words(text.rpartition("/")[2])
    if without_owner and (meant := _meant(wanted, [name for _, name in known.values()])):
        return NameMatch(meant)
    return NameMatch("", _nearest(text, wanted, [name for _, name in known.values()]))


@lru_cache(maxsize=16384)
def _words(name: str) -> frozenset[str]:
    """llama3.1:8b-instruct-q4_K_M -> llama, 3.1, 8b, instruct: the words of a name, digits apart from letters."""
    parts = re.split(r"[-_:/ ]+", name.lower())
    words: set[str] = set()
    for part in parts:
        if not part or _GGUF_TAG.match(part):
            continue
        split = re.match(r"^([a-z]+)(\d[\d.]*)$", part)
        words.update(split.groups() if split else (part,))
    return frozenset(words)


def _meant(wanted: frozenset[str], names: Iterable[str]) -> str:
    """The one name that has the same words but for those without meaning; "" where several rows could be meant."""
    core = wanted - _WITHOUT_MEANING
    found = [
        (name, words)
        for name in names
        if (words := _words(name.rpartition("/")[2])) - _WITHOUT_MEANING == core
        and (name.partition("/")[0].lower() not in _COPIES or words & _QUANTIZED)
    ]
    if not found:
        return ""
    # People who write llama3.1:8b mean the model that talks.
    chatty = [name for name, words in found if words & {"instruct", "it", "chat"}]
    return (chatty or [name for name, _ in found])[0]


def _nearest(text: str, wanted: frozenset[str], names: list[str]) -> tuple[str, ...]:
    lower = text.lower()
    tail = lower.rpartition("/")[2]
    quantized = bool(wanted & _QUANTIZED)
    # The matcher keeps what it has learnt of its second sequence.
    tails, wholes = SequenceMatcher(b=tail, autojunk=False), SequenceMatcher(b=lower, autojunk=False)
    ranked: list[tuple[float, int, str]] = []
    for order, name in enumerate(names):
        other = name.lower()
        owner, _, own_tail = other.partition("/")
        words = _words(own_tail)
        if not quantized and words & _QUANTIZED:
            continue
        score = _ratio(tails, own_tail)
        if owner == lower.partition("/")[0]:
            score = max(score, _ratio(wholes, other))
        if wanted <= words:
            # All of its words are there; the fewer others, the better.
            score = max(score, 0.95 - 0.02 * len(words - wanted - _WITHOUT_MEANING))
        if owner in _COPIES:
            score -= 0.05
        if score >= _LIKE:
            ranked.append((-score, order, name))
    seen: dict[str, str] = {}
    for _, _, name in sorted(ranked):
        seen.setdefault(name.rpartition("/")[2].lower(), name)
    return tuple(seen.values())[:_NEAR]


def _ratio(matcher: SequenceMatcher[str], name: str) -> float:
    matcher.set_seq1(name)
    # The two estimates are upper bounds and much faster.
    if matcher.real_quick_ratio() < _LIKE or matcher.quick_ratio() < _LIKE:
        return 0.0
    return matcher.ratio()


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
