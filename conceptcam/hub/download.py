"""Files on the Hugging Face Hub: fetched as of one commit, put there as one commit."""

import contextlib
import functools
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conceptcam._checks import did_you_mean
from conceptcam._version import __version__
from conceptcam.hub.address import Address, parse_source
from conceptcam.hub.errors import MISSHAPEN, _status, plain_errors, within
from conceptcam.hub.model_folder import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, is_hand_written, known_sha256
from conceptcam.hub.pace import least_pace
from conceptcam.hub.weights import sha256
from conceptcam.hub.zoo import bundled_models

_CLIENT: dict[str, Any] = {"library_name": "conceptcam", "library_version": __version__}
_USER = f"conceptcam/{__version__}"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SURELY_HUB = ("hf-hub:", "http://", "https://")
_FILES = (".safetensors", ".json", ".bin", ".pth", ".pt", ".ckpt")


def resolve_model(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The model folder that a source stands for: a path, a model of the package, or on the Hub and downloaded.

    Arguments and errors are those of `ConceptModel.from_pretrained`.
    """
    place = parse_source(source, revision)
    _refuse_missing_file(source, place)
    if isinstance(place, Path):
        return _bundled(source, revision) if isinstance(source, str) and not place.exists() else place
    if place.file is not None:
        raise ValueError(
            f"{source!r} is not here, and on the Hub it would be a file; a model is a whole folder, or a whole "
            f"repository: {place.repository!r}"
        )
    wanted = (CONFIG_FILE, WEIGHTS_FILE)
    return download(place, wanted, token=token, cache_dir=cache_dir, local_files_only=local_files_only)


def _refuse_missing_file(source: str | os.PathLike[str], place: Path | Address) -> None:
    """Refuse what is called like a file and is not there, before the Hub is asked for a repository of that name."""
    if isinstance(place, Address) and (place.revision is not None or str(source).startswith(_SURELY_HUB)):
        return
    path = place if isinstance(place, Path) else Path(place.repository)
    if path.suffix in _FILES and not (isinstance(place, Path) and path.exists()):
        on_the_hub = f", or 'hf-hub:{path}' for a repository of that name" if isinstance(place, Address) else ""
        raise FileNotFoundError(
            f"no file {source} is here; a model is the folder of its files: pass {str(path.parent)!r}{on_the_hub}"
        )


def _bundled(name: str, revision: str | None) -> Path:
    """The folder of a model of the package."""
    models = bundled_models()
    if name not in models:
        raise FileNotFoundError(
            f"no model folder {name} is here, and the package has no such model{did_you_mean(name, models)}; it has "
            f"{list(models)}"
        )
    if revision is not None:
        raise ValueError(f"{name} comes with the package and has no revision {revision!r}")
    return models[name]


def download(
    address: Address,
    files: Sequence[str],
    *,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """A folder with files of a repository, all of one commit, downloaded unless they are in the cache.

    Args:
        address: The repository, and the revision.
        files: Paths within it, all of which must be there.
        token: For private and gated repositories; None takes the one the client was logged in with.
        cache_dir: None takes the client's own.
        local_files_only: Whether to take what the cache has and ask nobody.

    Raises:
        FileNotFoundError: If the repository, the revision or a file does not exist, or is not in the cache.
        PermissionError: If access is refused.
        ConnectionError: If the Hub cannot be reached, breaks off, or sends a file too slowly; see `least_pace`.
        OSError: If the cache cannot be written.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with plain_errors(str(address)):
        asks = not local_files_only and not _has_commit(address, files, cache_dir)
        unreachable = _unreachable(address, token) if asks else None
        asks = asks and unreachable is None
        try:
            # One snapshot: files fetched one by one could be of two commits, if a push lands in between.
            with least_pace(_USER) if asks else contextlib.nullcontext():  # the cache needs no client
                folder = snapshot_download(
                    address.repository,
                    revision=address.revision,
                    allow_patterns=list(files),
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=not asks,
                    **_CLIENT,
                )
        except LocalEntryNotFoundError:
            if unreachable is None:
                raise
            raise unreachable from None
    if missing := [name for name in files if not Path(folder, name).is_file()]:
        raise FileNotFoundError(f"{address} holds no {' and no '.join(missing)}, or its copy in the cache does not")
    return Path(folder)


def check_download(file: Path) -> Path:
    """The same file, if it has the SHA-256 that the Hub states for it; for small files it states none.

    Raises:
        ValueError: If the SHA-256 differs; the message says what to remove.
    """
    wanted = known_sha256(file)
    if wanted and sha256(file) != wanted:
        raise ValueError(
            f"{file} is not the file that the Hub has: the SHA-256 differs; remove {file.resolve()} and load again"
        )
    return file


def _has_commit(address: Address, files: Sequence[str], cache_dir: str | Path | None) -> bool:
    """Whether the cache has these files of a commit, which cannot change, so that nobody need be asked."""
    from huggingface_hub import try_to_load_from_cache

    def is_there(name: str) -> bool:
        found = try_to_load_from_cache(address.repository, name, cache_dir=cache_dir, revision=address.revision)
        return isinstance(found, str)

    return _COMMIT.fullmatch(address.revision or "") is not None and all(map(is_there, files))


def _unreachable(address: Address, token: str | None) -> Exception | None:
    """Why nothing answers as the Hub would, if so: `snapshot_download` would wait for a silent one for ever."""
    from huggingface_hub import HfApi, constants, errors

    wait = constants.HF_HUB_ETAG_TIMEOUT
    ask = functools.partial(
        HfApi(token=token, **_CLIENT).model_info, address.repository, revision=address.revision, timeout=wait
    )
    try:
        # The client's own time is for each read: an answer that dribbles would never use it up.
        commit = within(3 * wait, ask).sha
    except (errors.HTTPError, OSError, json.JSONDecodeError, *MISSHAPEN) as error:
        return None if _status(error) else error
    return None if isinstance(commit, str) else TypeError("its answer names no commit")


def upload(
    folder: Path,
    repository: str,
    *,
    keep_card: bool,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str,
) -> str:
    """Put a folder on the Hub as one commit, and give the commit's address.

    Args:
        folder: What to upload.
        repository: `"organization/name"`; created if it is not there.
        keep_card: Whether a card written by hand on the Hub stays as it is.
        token: With the right to write; None takes the one the client was logged in with.
        private: Whether a repository that is created is private; None leaves it to the organization.
        revision: Branch to commit to; created if it is not there.
        commit_message: First line of the commit.

    Raises:
        PermissionError: If the token is missing or may not write.
        ConnectionError: If the Hub cannot be reached, or answers too slowly; see `least_pace`.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, **_CLIENT)
    with plain_errors(repository), least_pace(_USER):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        keeps = keep_card and _has_own_card(Address(repository, revision), token)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            ignore_patterns=[CARD_FILE] if keeps else None,
        )
    return str(commit.commit_url)


def _has_own_card(address: Address, token: str | None) -> bool:
    """Whether the Hub holds a card that was written by hand."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with tempfile.TemporaryDirectory() as scratch:
        try:
            card = hf_hub_download(
                address.repository, CARD_FILE, revision=address.revision, local_dir=scratch, token=token, **_CLIENT
            )
        except LocalEntryNotFoundError:
            raise  # the Hub did not say that there is none
        except EntryNotFoundError:
            return False
        return is_hand_written(Path(card))
