"""The pieces of work of `all_gpu.py`: what each runs, for how long, and how it is rehearsed."""

from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLIP = "shape:clip-vit-l-14-336"
PROFILE = ("-m", "fusionbench", "profile", "--encoder", CLIP, "--dtype", "bf16")
FEW = "penultimate,scalar_mix,dense_connector-dci,mmfuser,mema,mema-readout"

# What makes each piece small enough for a CPU; of an option that is given twice the last counts.
_SHRINK = ["--shrink", "--batch", "2", "--blocks", "2"]
_NANO = ["--encoder", "nano", "--width", "32", "--batch", "2", "--blocks", "2", "--dtype", "fp32"]
_META = ["--device", "meta", "--encoder", "nano"]
_FEW_STEPS = ["--steps", "11", "--batch", "1", "--method", "dia_lstm", "--seeds", "2"]
TINY = {
    "mema_clip-default": _SHRINK,
    "mema_clip-gates": _SHRINK,
    "mema_clip-inference": _SHRINK,
    "seeds_on_features": ["--steps", "2", "--methods", "scalar_mix", "--points", "2"],
    "seeds_in_encoder-steps": _FEW_STEPS,
    "whole_study": [
        "--encoder", "nano", "--methods", "scalar_mix", "last", "--tasks", "digits",
        "--seeds", "2", "--sampled", "2", "4"],
    "profile_twice": [*_NANO, "--methods", "scalar_mix"],
    "feature_loading": ["--seeds", "2", "--steps", "2", "--pool", "64"],
    "encoding": ["--images", "128"],
    "llava_step": _SHRINK,
    "mema_clip-graphs": _SHRINK,
    "profile-all": [*_NANO, *_META],
    "scaling-steps": [
        "--methods", "scalar_mix", "--batch", "1", "--axes", "tokens", "--points", "16"],
    "scaling-rest": ["--axes", "seeds", "--points", "2"],
    "seeds_in_encoder-blocks": _FEW_STEPS,
    "profile-compiled": [*_NANO, "--compile", "off"],
    "profile-train": _NANO,
    "profile-language": _META,
}  # fmt: skip


def tasks(device: str, *, tiny: bool = False) -> Mapping[str, tuple[float, list[str]]]:
    """Name of each piece of work: minutes that it may take, and its arguments."""

    def script(name: str, *more: str) -> list[str]:
        return [str(HERE / f"{name}.py"), "--device", device, *more]

    def profile(*more: str) -> list[str]:
        return [*PROFILE, "--device", device, *more]

    # The rows of the targets come first, should the machine be lent for less than all.
    found = {
        "mema_clip-default": (3, script("mema_clip", "--parts", "train", "--ways", "default")),
        "mema_clip-gates": (3, script("mema_clip", "--parts", "train", "--ways", "gates")),
        "seeds_in_encoder-steps": (
            2, script("seeds_in_encoder", "--ways", "steps", "--seeds", "10")),
        "mema_clip-inference": (3, script("mema_clip", "--parts", "inference")),
        "seeds_on_features": (3, script("seeds_on_features", "--steps", "200")),
        "whole_study": (
            9, script("whole_study", "--minutes", "8", "--sampled", "10", "40")),
        "profile_twice": (4, script("profile_twice")),
        "feature_loading": (4, script("feature_loading")),
        "encoding": (3, script("encoding")),
        "llava_step": (3, script("llava_step")),
        "mema_clip-graphs": (6, script("mema_clip", "--parts", "train", "--ways", "graphs")),
        "profile-all": (9, profile("all", "--missing")),
        "scaling-steps": (5, script("scaling", "--axes", "tokens", "blocks")),
        "scaling-rest": (5, script("scaling", "--axes", "seeds", "methods")),
        "seeds_in_encoder-blocks": (
            2, script("seeds_in_encoder", "--ways", "blocks", "--seeds", "10")),
        "profile-compiled": (9, profile(FEW, "--compile", "default")),
        "profile-train": (8, profile(FEW, "--mode", "train")),
        "profile-language": (8, profile(FEW, "--language-model", "--batch", "8")),
    }  # fmt: skip
    if tiny:
        found = {name: (0.2, [*words, *TINY[name]]) for name, (_, words) in found.items()}
    return found
