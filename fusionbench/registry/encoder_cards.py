"""Cards of encoders by name, built-in or of plug-ins. No torch here."""

from collections.abc import Callable
from pathlib import Path

from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.encoders import catalog as built_in
from fusionbench.encoders.builtin import is_built_in
from fusionbench.encoders.card import EncoderCard, fingerprint, patches
from fusionbench.registry.cards import PluggedEncoder
from fusionbench.registry.catalog import Catalog

_ENCODERS = "`fusionbench list encoders` shows what is here"
OFFLINE = (
    "without a network: name a folder (--encoder hf:/path or timm:/path), set HF_HOME to a cache "
    "that holds it, or run `fusionbench pack` where there is one and set FUSIONBENCH_DATA here"
)


def describe(catalog: Catalog, name: str, *, image_size: int = 0) -> EncoderCard:
    """Card of an encoder, without importing or downloading anything.

    Raises ValueError for an unknown name (with the nearest one) or a size that it cannot take.
    """
    if name in catalog.encoders:
        return _card(catalog.encoders[name], image_size)
    near = did_you_mean(name, catalog.encoders)
    if near and ":" not in name and not is_built_in(name):
        raise ValueError(f"no encoder {name!r}{near}")
    return built_in.describe(name, image_size=image_size)


def plugged(catalog: Catalog) -> list[EncoderCard]:
    """Cards of all plug-in encoders."""
    return [_card(one, 0) for one in catalog.encoders.values()]


def _card(declared: PluggedEncoder, image_size: int) -> EncoderCard:
    size = image_size or declared.size
    if size != declared.size and not declared.resizable:
        raise ValueError(f"{declared.name} reads images of {declared.size} pixels only, got {size}")
    files = [Path(declared.file).parent / name for name in declared.weights]
    absent = [file.name for file in files if not file.is_file()]
    architecture = {
        "plugin": declared.name, "version": declared.version, "layers": declared.layers,
        "dim": declared.dim, "patch": declared.patch, "prefix": declared.prefix,
    }  # fmt: skip
    lacking = [*declared.missing, *absent]
    return EncoderCard(
        name=declared.name,
        source=declared.about,
        available=not lacking,
        get=(declared.get or f"needs {', '.join(lacking)}") if lacking else "",
        path=declared.file,
        weights="" if lacking else fingerprint(files, architecture=architecture),
        layers=declared.layers,
        dim=declared.dim,
        grid=patches(size, patch=declared.patch, name=declared.name),
        prefix=declared.prefix,
        size=size,
        origin=declared.source,
        module=declared.module,
        cls=declared.cls,
    )


def found_encoder(  # noqa: PLR0913  (how the weights may be had)
    catalog: Catalog,
    name: str,
    *,
    image_size: int,
    download: bool,
    absent: bool,
    hear: Callable[[str], None],
) -> EncoderCard:
    """An encoder's card with the fingerprint of its weights, which are fetched if `download`.

    `absent`: without weights where the sizes are known. `hear` gets a sentence before they are
    fetched. Raises UserError.
    """
    try:
        card = describe(catalog, name, image_size=image_size)
        if card.available or (absent and card.layers):
            return card
        if download and name not in catalog.encoders:
            # It loads torch, which a study whose weights are here does without.
            from fusionbench.encoders.fetch import fetch

            hear(f"fetching the weights of {name}")
            fetch(name)
            return describe(catalog, name, image_size=image_size)
    except UserError:
        raise
    except OSError as error:
        raise UserError(str(error), OFFLINE) from error
    except ValueError as error:
        raise UserError(str(error), _ENCODERS) from error
    raise UserError(f"the weights of encoder {name!r} are not here", card.get)
