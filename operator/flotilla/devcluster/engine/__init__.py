"""A simulated inference engine: TEST TOOL, no model runs here and no number it gives is a measurement.

`python -m flotilla.devcluster.engine <vllm|tgi> <bind-ip> -- <argv as the container would see it>` takes the
arguments and the environment of the real container, refuses what the real parser refuses, loads for a while,
then speaks the engine's HTTP API and metrics with answer times from a queueing model.

Modelled: continuous batching with slots, chunked prefill, decode speed that falls per sequence and saturates
in total, KV-cache blocks with preemption (vLLM) or reservation (TGI), the waiting queue, admission limits,
error bodies, metric text, drain on SIGTERM with vLLM's two modes and TGI's one.

NOT modelled: tokenizers (4 characters are a token), real text, stop strings, logprobs, tool calls, images,
prefix-cache hits, LoRA, speculative decoding, priorities, several GPUs or API servers, sleep mode,
embeddings, memory need by model or quantization, start-up time by size, CPU cost of the API process, TLS,
`--config` files. Streams carry what was produced since the last tick in one chunk, where a real engine
mostly sends one per token.

Settings that stand for hardware come from `FLOTILLA_SIM_*`, see `settings.SimSettings`.
"""
