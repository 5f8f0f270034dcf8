"""Where a request may go, and where it goes: pure, and the same for the gateway, the operator and the command line."""
