"""Which requests a rule is for, and which of them a target can serve."""

from flotilla.api.routes import Match, Streaming
from flotilla.domain.routing.document import Target
from flotilla.domain.routing.request import Features, Operation


def matches(match: Match, features: Features) -> bool:
    """Whether a rule is for this request."""
    if match.models and features.model not in match.models:
        return False
    if match.tasks and features.task not in match.tasks:
        return False
    if any(features.headers.get(header.name) != header.value for header in match.headers):
        return False
    for limits, value in ((match.prompt_tokens, features.prompt_tokens), (match.tools, features.tools)):
        if limits is None:
            continue
        if (limits.min is not None and value < limits.min) or (limits.max is not None and value > limits.max):
            return False
    return match.streaming is None or (match.streaming is Streaming.STREAMED) == features.stream


def lacks(target: Target, features: Features) -> str | None:
    """What a request needs and the target is known not to have; lengths aside, which are estimates."""
    able = target.capabilities
    if features.tools and able.tools == "Unsupported":
        return "tools"
    if features.json_schema and able.json_schema == "Unsupported":
        return "JSON schema"
    if features.images and able.vision == "Unsupported":
        return "images"
    anthropic = target.hosted is not None and target.hosted.provider == "Anthropic"
    if anthropic and features.operation is not Operation.CHAT:
        return features.operation.value
    return None


def fits(target: Target, features: Features) -> bool:
    """Whether prompt and answer fit by the estimate; true where the context length is unknown."""
    length = target.capabilities.context_length
    return length is None or features.prompt_tokens + (features.max_tokens or 1) <= length


def covers(wide: Match, narrow: Match) -> bool:
    """Whether every request that `narrow` matches is matched by `wide` too."""
    headers = {(h.name, h.value) for h in narrow.headers}
    return (
        _list_covers(wide.models, narrow.models)
        and _list_covers(wide.tasks, narrow.tasks)
        and all((h.name, h.value) in headers for h in wide.headers)
        and _range_covers(_ends(wide.prompt_tokens), _ends(narrow.prompt_tokens))
        and _range_covers(_ends(wide.tools), _ends(narrow.tools))
        and wide.streaming in (None, narrow.streaming)
    )


def _list_covers(wide: list[str], narrow: list[str]) -> bool:
    return not wide or (bool(narrow) and set(narrow) <= set(wide))


def _ends(limits: object) -> tuple[float, float]:
    low, high = getattr(limits, "min", None), getattr(limits, "max", None)
    return (0 if low is None else low, float("inf") if high is None else high)


def _range_covers(wide: tuple[float, float], narrow: tuple[float, float]) -> bool:
    return wide[0] <= narrow[0] and narrow[1] <= wide[1]
