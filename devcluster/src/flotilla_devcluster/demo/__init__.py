"""`make demo`: the whole product in one command, on simulated GPUs."""
