"""Packaged data about engines, accelerators and models: files under `data/`, and the loaders that validate them.

engines       data/engines/NAME.yaml: arguments, images, probes, metrics. A new engine is a new file there.
accelerators  data/accelerators.yaml, the GPU classes: memory, node labels, list prices
chips         published bandwidth and FLOPs of GPUs, for the speed model
model_config  reads a config.json: the keys that describe the language model, and the type of each layer
parameters    counts parameters by part from the shapes that a config.json implies
recipes       reads a quantization_config: how the weights of a checkpoint are stored
models        architectures and checkpoints, for the memory fit and the speed model; hack/catalogue keeps their data
names         finds the checkpoint for a typed model name, and suggests similar names

All but the loaders are pure. Administrators add engines and accelerators with files of their own, which win over the
packaged ones. Loaders read files once at the start; nothing else here does I/O.
"""
