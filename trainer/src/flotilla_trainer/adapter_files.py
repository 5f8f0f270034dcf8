"""The files of an adapter: PEFT's (vLLM, SGLang, transformers) and GGUF (llama.cpp), with a report and a digest.

    adapter_config.json           what PEFT reads first
    adapter_model.safetensors     float32 matrices, named as PEFT names them
    adapter.gguf                  the same for llama.cpp; rows of q and k in the order of GGUF weights
    report.json                   the summary of the run, and the SHA-256 of each file

The folder appears under its name in one rename, so that a reader never finds half of it."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from flotilla_trainer.errors import TrainerError

PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
GGUF_FILE = "adapter.gguf"
REPORT = "report.json"

# Name of a projection in PEFT's files -> its name in GGUF files; those of the second group have permuted rows.
_GGUF_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
# Architectures whose GGUF weights keep the rows of q and k in pairs, as llama.cpp's converter writes them.
_PAIRED_ROWS = {"llama"}


def tensor_name(layer: int, module: str, matrix: str) -> str:
    """PEFT's name of one matrix, `matrix` being A or B and `module` such as `self_attn.q_proj`."""
    return f"base_model.model.model.layers.{layer}.{module}.lora_{matrix}.weight"


def peft_config(base: str, rank: int, alpha: int, target_modules: tuple[str, ...]) -> dict[str, Any]:
    """The fields of `adapter_config.json` that PEFT, vLLM and SGLang read."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": list(target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def write_peft(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """PEFT's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(one) for name, one in tensors.items()}, folder / PEFT_WEIGHTS)
    (folder / PEFT_CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n")


def gguf_rows(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection from Hugging Face's order (halves) to that of GGUF files (pairs)."""
    half = matrix.shape[0] // heads // 2
    return matrix.reshape(heads, 2, half, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def hugging_face_rows(matrix: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `gguf_rows`."""
    half = matrix.shape[0] // heads // 2
    return matrix.reshape(heads, half, 2, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def write_gguf(folder: Path, architecture: str, heads: int, key_value_heads: int) -> None:
    """`adapter.gguf` from PEFT's files in the same folder, for a base of `architecture` (GGUF's name of it)."""
    config = json.loads((folder / PEFT_CONFIG).read_text())
    writer = gguf.GGUFWriter(folder / GGUF_FILE, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, matrix in sorted(load_file(folder / PEFT_WEIGHTS).items()):
        parts = name.removeprefix("base_model.model.").split(".")
        # model.layers.N.self_attn.q_proj.lora_A.weight
        if parts[:2] != ["model", "layers"] or len(parts) != 7 or parts[4] not in _GGUF_NAMES:
            raise TrainerError(f"{PEFT_WEIGHTS} has the tensor {name}, which llama.cpp's LoRA has no name for.")
        layer, projection, kind = parts[2], parts[4], parts[5].removeprefix("lora_").lower()
        if kind == "b" and projection in ("q_proj", "k_proj") and architecture in _PAIRED_ROWS:
            matrix = gguf_rows(matrix, heads if projection == "q_proj" else key_value_heads)
        writer.add_tensor(
            f"blk.{layer}.{_GGUF_NAMES[projection]}.weight.lora_{kind}", np.ascontiguousarray(matrix, dtype=np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the adapter's files, without the report."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (PEFT_CONFIG, PEFT_WEIGHTS, GGUF_FILE)
        if (folder / name).is_file()
    }


def adapter_digest(digests: Mapping[str, str]) -> str:
    """One digest of all files: `sha256:` of the sorted lines `digest  name`, as `sha256sum` prints them."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def publish(draft: Path, output: Path, report: Mapping[str, Any]) -> None:
    """Give the finished folder `draft` the name `output`; what was there before is replaced."""
    (draft / REPORT).write_text(json.dumps({**report, "files": file_digests(draft)}, indent=2) + "\n")
    if output.exists():
        shutil.rmtree(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(output)
