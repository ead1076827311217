"""Downloads from the Hugging Face hub that give up quickly where there is no network."""

from pathlib import Path

from fusionbench.encoders import dinov2

_PATIENCE_SECONDS = 4.0
_DINOV2 = "facebook/dinov2-small"
_FILES = ("config.json", "preprocessor_config.json", "model*.safetensors", "*.index.json")


def dinov2_from_hub(target: Path) -> None:
    """facebook/dinov2-small from the hub or its cache, converted into `target`; else OSError."""
    from safetensors.torch import load_file

    weights = load_file(_file(_DINOV2, "model.safetensors"))
    layers = int(dinov2.ARCHITECTURE["layers"])
    dinov2.save(
        dinov2.renamed(weights, layers=layers),
        target,
        source=f"{_DINOV2} (Hugging Face hub, Apache-2.0)",
    )


def fetch_snapshot(name: str) -> Path:
    """Folder of `hf:<id>` or `timm:<name>` in the Hugging Face cache, downloaded; else OSError."""
    library, _, checkpoint = name.partition(":")
    repo = checkpoint if library == "hf" else timm_repo(checkpoint)
    require_hub()
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, allow_patterns=list(_FILES)))


def timm_repo(name: str) -> str:
    """The repository of a timm model name; ValueError for one that timm does not know."""
    import timm

    config = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not config.hf_hub_id:
        near = timm.list_models(f"*{name.split('.')[0]}*", pretrained=True)[:3]
        hint = f"; timm has {', '.join(near)}" if near else ""
        raise ValueError(f"timm has no pretrained weights named {name!r}{hint}")
    repo = config.hf_hub_id
    return f"{repo}{name}" if repo.endswith("/") else repo


def require_hub() -> None:
    """OSError within seconds if the hub is switched off or cannot be reached.

    A download itself would try again and again, minutes where packets are dropped.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        raise OSError("the Hugging Face hub is switched off (HF_HUB_OFFLINE)")
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS)
    # Releases of the hub's client raise classes of different HTTP libraries.
    except Exception as error:
        raise OSError(f"no connection to {constants.ENDPOINT} ({error})") from error


def _file(repo: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repo, name)
    if isinstance(cached, str):
        return Path(cached)
    require_hub()
    return Path(hf_hub_download(repo, name))
