"""JSON schemas that clients send: does a value fit? Never more than the schema's own text is read for it."""

from typing import Any, Final

_BACKTRACKS: Final = 10_000
"""Steps of one pattern; a client's own pattern could else take for ever."""


def allows(schema: Any, value: Any) -> bool:
    """Whether the schema allows the value. One that cannot be used allows everything: the target refuses it itself."""
    if not isinstance(schema, dict | bool):
        return True
    # 10 MB that only gateways with such rules need.
    import jsonschema_rs

    try:
        # Not offline, a $ref would be fetched from any address or read from any file that the client names.
        validator = jsonschema_rs.validator_for(
            schema, offline=True, pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS)
        )
        return validator.is_valid(value)
    except ValueError:
        return True
