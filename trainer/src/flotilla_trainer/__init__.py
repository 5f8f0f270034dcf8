"""Trains LoRA adapters for Flotilla: `python -m flotilla_trainer train --base ... --train ... --output ...`.

From top to bottom:

- `__main__`       the commands `train`, `answer` and `convert`
- `settings`       what a run is asked to do
- `examples`       chat-completion JSONL -> tokens -> batches
- `base`           the base model's tokenizer and facts, from a GGUF file or a folder in Hugging Face's layout
- `jax_backend`    training on a CPU with JAX, for Llama models; `llama` is its forward pass
- `trl_backend`    training on GPUs with TRL and PEFT (extra `gpu`)
- `adapter_files`  what a run leaves: PEFT's files, GGUF, report
- `progress`       log lines, metrics, the termination message

This distribution is not a member of the operator's workspace: the operator's lock contains neither JAX nor PyTorch."""
