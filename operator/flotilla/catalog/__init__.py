"""What the operator knows without asking anybody: data files under `data/` and the loaders that validate them.

engines       one YAML profile per engine: arguments, images, probes, metric names. A new engine is a new file there.
accelerators  GPU classes: memory, node labels, list prices
chips         published bandwidth and FLOPs of GPUs, for the speed model
models        architectures and checkpoints, for the memory fit

Administrators add engines and accelerators with files of their own, which win over the packaged ones. Loaders read
files once at the start; nothing else here does I/O.
"""
