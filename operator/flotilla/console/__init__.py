"""The web console: one read-only page of the operator that shows the fleet as it is now."""
