"""The four dashboards: fleet, one model, routing, savings."""

from collections.abc import Mapping

from flotilla.engines.profile import Profile
from flotilla.render.monitoring import board_fleet, board_model, board_routing, board_savings
from flotilla.render.monitoring.panels import Dashboard


def boards(profiles: Mapping[str, Profile]) -> tuple[Dashboard, ...]:
    """All of them."""
    return (
        board_fleet.board(),
        board_model.board(profiles),
        board_routing.board(),
        board_savings.board(),
    )
