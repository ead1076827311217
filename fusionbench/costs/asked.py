"""What a person wants profiled, and how. No torch here."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["inference", "train"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The conditions of one command, the methods apart."""

    encoder: str
    image_size: int = 0
    """Pixels; 0: the encoder's own."""
    width: int = 4096
    """Of the projector's output and of the question's vector."""
    batch: int = 32
    dtype: str = "fp32"
    device: str = "auto"
    mode: Mode = "inference"
    compile: str = "off"
    language_model: bool = False
    """A 7B language model with random weights behind encoder and projector."""
    blocks: int = 30
    """Timed blocks."""
