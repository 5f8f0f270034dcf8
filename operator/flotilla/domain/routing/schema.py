"""JSON schemas that clients send: does a value fit? Never more than the schema's own text is read for it."""

from functools import lru_cache
from typing import Any, Final

import orjson

_BACKTRACKS: Final = 10_000
"""Steps of one pattern; a client's own pattern could else take for ever."""
_KEPT: Final = 128
_KEPT_BYTES: Final = 16_384


def allows(schema: Any, value: Any) -> bool:
    """Whether the schema allows the value. One that cannot be used allows everything: the target refuses it itself."""
    if not isinstance(schema, dict | bool):
        return True
    try:
        text = orjson.dumps(schema)
        validator = _validator(text) if len(text) <= _KEPT_BYTES else _validator.__wrapped__(text)
        return bool(validator.is_valid(value))
    except (TypeError, ValueError):
        return True


@lru_cache(maxsize=_KEPT)
def _validator(text: bytes) -> Any:
    """Clients send the same schema again and again. Raises ValueError where it is none."""
    # 10 MB that only gateways with such rules need.
    import jsonschema_rs

    # Not offline, a $ref would be fetched from any address or read from any file that the client names.
    return jsonschema_rs.validator_for(
        orjson.loads(text), offline=True, pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS)
    )
