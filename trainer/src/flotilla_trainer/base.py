"""The base model of a run: where it is, its tokenizer, and what the adapter's files say about it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flotilla_trainer.errors import TrainerError

# `model_type` of Hugging Face's config.json -> `general.architecture` of GGUF files, where the names differ.
_GGUF_ARCHITECTURES = {"mistral": "llama", "gemma": "gemma", "phi3": "phi3"}


@dataclass(frozen=True)
class Base:
    """A base model on this machine. `path` is a GGUF file or a folder with a config.json."""

    path: Path
    architecture: str
    heads: int
    key_value_heads: int

    @property
    def is_gguf(self) -> bool:
        """Whether the weights are in a GGUF file."""
        return self.path.is_file()


def open_base(source: str) -> Base:
    """The base at `source`; a folder that holds a single GGUF file stands for that file.

    Raises TrainerError when there is no model."""
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise TrainerError(
                f"base: {source} has neither a config.json nor exactly one GGUF file; name the GGUF file itself."
            )
        path = files[0]
    if path.is_file():
        reader = gguf.GGUFReader(path)
        architecture = str(reader.fields["general.architecture"].contents())
        heads = int(reader.fields[f"{architecture}.attention.head_count"].contents())
        kept = reader.fields.get(f"{architecture}.attention.head_count_kv")
        return Base(path, architecture, heads, int(kept.contents()) if kept else heads)
    if not path.is_dir():
        raise TrainerError(f"base: there is no file or folder {source}.")
    config = json.loads((path / "config.json").read_text())
    kind = str(config.get("model_type"))
    heads = int(config["num_attention_heads"])
    return Base(path, _GGUF_ARCHITECTURES.get(kind, kind), heads, int(config.get("num_key_value_heads") or heads))


def load_tokenizer(base: Base) -> Any:
    """The tokenizer with its chat template. Raises TrainerError when the model has none."""
    if base.is_gguf:
        tokenizer = _gguf_tokenizer(gguf.GGUFReader(base.path))
    else:
        tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    if not tokenizer.chat_template:
        raise TrainerError("base: the model has no chat template; fine-tune the variant for instructions (…-Instruct).")
    return tokenizer


# Regular expressions of llama.cpp's pre-tokenizers (`tokenizer.ggml.pre`), for byte-level BPE.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_CONTROL_TOKEN, _USER_TOKEN = 3, 4


def _pre_tokenizer(name: str) -> Any:
    """How the text is cut into words before BPE. Raises TrainerError for a kind that is not known here."""
    if name in ("smollm", "gpt-2", "default"):
        digits = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm" else []
        return pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    words = {"llama-bpe": _LLAMA3_WORDS, "qwen2": _QWEN2_WORDS}.get(name)
    if words is None:
        raise TrainerError(
            f"base: the GGUF file's tokenizer is of the kind {name!r}, which is not known here; "
            "use the model's folder in Hugging Face's layout instead."
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gguf_tokenizer(reader: gguf.GGUFReader) -> Any:
    """The byte-level BPE tokenizer of a GGUF file. transformers reads it only where PyTorch is installed."""

    def field(name: str, default: Any = None) -> Any:
        one = reader.fields.get(f"tokenizer.{name}")
        return default if one is None else one.contents()

    if field("ggml.model") != "gpt2":
        raise TrainerError(
            f"base: the GGUF file's tokenizer is {field('ggml.model')!r}; of GGUF, only byte-level BPE (gpt2) is read. "
            "Use the model's folder in Hugging Face's layout instead."
        )
    texts = field("ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in field("ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(texts)}, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(field("ggml.pre", "default"))
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field("ggml.token_type", [])
    tokenizer.add_special_tokens(
        [
            AddedToken(text, normalized=False, special=True)
            for text, kind in zip(texts, kinds, strict=False)
            if kind in (_CONTROL_TOKEN, _USER_TOKEN)
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=texts[field("ggml.eos_token_id")],
        chat_template=field("chat_template"),
        clean_up_tokenization_spaces=False,
    )
