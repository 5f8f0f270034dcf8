"""A simulated inference engine: TEST TOOL, no model runs here and no number it gives is a measurement.

`python -m flotilla_devcluster.engine <vllm|tgi|sglang|llamacpp> <bind-ip> -- <argv as the container would see it>`
takes the arguments and the environment of the real container, refuses what the real parser refuses, loads for a while,
then speaks the engine's HTTP API and metrics with answer times from a queueing model.

Shared by all engines, and driven by the tables in `data/`:

- `settings`: the `FLOTILLA_SIM_*` variables that stand for hardware, and what every configuration has
- `arguments`: command lines from `data/*.flags`
- `metrics`: metric families from `data/*.metrics`, with the events that fill them, in the dialects of the engines
- `requests`: prompts and answers, and refusals
- `loop`: the batcher in real time, streams and documents
- `serving`: the server, and the life of its process
- `__main__`, `forkserver`: the process; many of them, forked

Of one engine: `NAME_config` has its command line and configuration, `NAME` its endpoints, checks, answers and end.

Modelled: continuous batching with slots, chunked prefill, decode speed that falls per sequence and saturates
in total, KV-cache blocks with preemption (vLLM, SGLang, llama.cpp) or reservation (TGI), the waiting queue, admission
limits, error bodies, metric text, and the end after SIGTERM: drains of vLLM (two), TGI and SGLang, llama.cpp's silence.

NOT modelled: tokenizers (4 characters are a token), real text, stop strings, logprobs, tool calls, images,
prefix-cache hits, LoRA weights (SGLang's adapters and llama.cpp's have their names only), speculative decoding,
priorities, several GPUs or API servers, sleep mode, embeddings, memory need by model or quantization, start-up time by
size, CPU cost of the API process, TLS, `--config` files. Streams carry what was produced since the last tick in one
chunk, where a real engine mostly sends one per token. Of SGLang: its native and Anthropic APIs, adapters loaded at run
time, gauges that are as old as the last 40 steps. Of llama.cpp: its native API, the router of several models, the error
that ends requests when a shared KV cache is full (they are preempted), the head of a stream that comes with its slot.
"""
