"""From a wish to a plan, before anything runs. Pure: no I/O but the packaged tables.

speed: how fast a model is on a GPU. chips: what the GPUs' makers publish (chips.yaml).
"""
