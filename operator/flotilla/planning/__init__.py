"""Turns a spec into a plan, before anything runs. Pure: no I/O, no clock.

quantization: which method, and the flag of the engine for it. memory_fit: does the model fit, on how many GPUs, with
which context. resolve: both together, for a whole spec. speed: how many tasks a second a replica does.
"""
