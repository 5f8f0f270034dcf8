"""From traffic to a small model: captured examples, the data set of a training run, and what a run leaves.

- `redaction`      removes personal data and secrets from texts (pure)
- `capture`        what is kept of a request, and its line in a file: chat-completion JSONL (pure)
- `capture_store`  files of captured examples: append, list, delete by request or user, retention
- `dataset`        examples -> training and held-out split: deduplicated, balanced, checked for leakage (pure)

The gateway writes examples through `capture_store`. `flotilla tune` makes the data set and starts the trainer, which is
a distribution of its own (`trainer/`)."""
