"""What a training run is asked to do; the command line and the operator's Job both fill this."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_PROJECTIONS: tuple[Projection, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraSettings(BaseModel):
    """Size and place of the adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[int, Field(ge=1, le=1024)] = 32
    target_modules: tuple[Projection, ...] = ALL_PROJECTIONS

    @property
    def scale(self) -> float:
        """Factor of the product of both matrices."""
        return self.alpha / self.rank


class TrainSettings(BaseModel):
    """One run: base, data, method, output. All paths are on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    train: Path
    validation: Path | None = None
    output: Path
    checkpoints: Path
    lora: LoraSettings = LoraSettings()
    epochs: Annotated[int, Field(ge=1, le=100)] = 3
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 6e-4
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    max_length_tokens: Annotated[int, Field(ge=16, le=131072)] = 512
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    checkpoint_every_steps: Annotated[int, Field(ge=1)] = 16

    @property
    def fingerprint_fields(self) -> dict[str, object]:
        """What a checkpoint depends on besides the data and the base: a run with other values starts anew."""
        return self.model_dump(
            mode="json", include={"lora", "epochs", "learning_rate", "batch_size", "max_length_tokens", "seed"}
        )
