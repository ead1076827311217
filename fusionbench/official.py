"""Official parameter names: how a released checkpoint meets a method's own parameters."""

from collections.abc import Iterable, Mapping

from torch import Tensor


def matched(names: Iterable[str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each name the weight called so, whatever stands before it in the checkpoint.

    `dsu.W1.weight` finds `model.vision_tower.dsu.W1.weight`; other weights are left alone. Raises
    ValueError if a name is missing or fits more than one weight.
    """
    return {name: weights[_only(name, weights)] for name in names}


def _only(name: str, weights: Mapping[str, Tensor]) -> str:
    if name in weights:
        return name
    found = [official for official in weights if official.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name} fits several of the checkpoint's weights: {', '.join(found)}")
    some = ", ".join(sorted(weights)[:5]) or "nothing"
    raise ValueError(f"the checkpoint has no weight {name}; it has {some}, …")
