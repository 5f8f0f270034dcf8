"""What the operator knows without asking anybody: data files under `data/` and the loaders that validate them.

engines       one YAML profile per engine: arguments, images, probes, metric names. A new engine is a new file there.
accelerators  GPU classes: memory, node labels, list prices
chips         published bandwidth and FLOPs of GPUs, for the speed model
model_config  reads a config.json: which keys hold for the language model, and of which kind each layer is
parameters    counts parameters by part from the shapes that a config.json implies
recipes       reads a quantization_config: how the weights of a checkpoint are stored
models        architectures and checkpoints, for the memory fit and the speed model; hack/catalogue keeps their data
names         from what people type to a checkpoint, and the nearest names

All but the loaders are pure. Administrators add engines and accelerators with files of their own, which win over the
packaged ones. Loaders read files once at the start; nothing else here does I/O.
"""
