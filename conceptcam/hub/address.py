"""What a source stands for: a path here, or an address on the Hugging Face Hub."""

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SITES = ("huggingface.co", "www.huggingface.co", "hf.co")
_NO_MODELS = ("collections", "datasets", "docs", "models", "organizations", "papers", "spaces")
_AT_REVISION = ("tree", "blob", "resolve", "raw", "commit")


class Address(NamedTuple):
    """Something on the Hub."""

    repository: str
    """`"organization/name"`."""
    revision: str | None = None
    """Branch, tag or commit; None is the main branch."""
    file: str | None = None
    """Path of one file in the repository."""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return self.repository + (f"/{self.file}" if self.file else "") + at


def parse_source(source: str | os.PathLike[str], revision: str | None = None) -> Path | Address:
    """Where a source is: a path, or an address on the Hub.

    A path object, a name of something that is there, and text that starts with `.`, `/` or `~` are paths.
    Other text with a slash is an address: `org/name`, `org/name/file`, each perhaps with `@revision` behind or
    `hf-hub:` before; or that of its page, `https://huggingface.co/org/name`. Anything else is a path, which is not
    there.

    Raises:
        ValueError: If it is empty, or a revision is given twice, for a path, or announced by `@` and then left out; or
            if it is a page of another site, or one of the Hub that is no model.
    """
    if source == "":
        raise ValueError("an empty text names nothing; for the folder you are in write '.'")
    path = Path(source).expanduser()
    if not isinstance(source, str) or source.startswith((".", "/", "~")) or path.exists():
        if revision is not None:
            raise ValueError(f"{source} is a path, which has no revision {revision!r}")
        return path
    name, at, inline = _without_site(source).removeprefix("hf-hub:").partition("@")
    if at and not inline:
        raise ValueError(f"{source!r} ends before its revision; write a branch, tag or commit behind the @")
    if inline and revision is not None:
        raise ValueError(f"{source!r} names a revision, and so does revision={revision!r}; give one of them")
    found = _REPOSITORY.match(name)
    if found is None:
        return path
    rest = name[found.end() :]
    if rest and not rest.startswith("/"):
        return path
    return Address(found[0], inline or revision, rest.strip("/") or None)


def _without_site(source: str) -> str:
    """The address of a page as `org/name/file@revision`; other text as it is.

    Pages of a revision have it behind a word: `org/name/tree/main`, `org/name/resolve/main/model.safetensors`.
    """
    is_address = "://" in source
    if not is_address and source.partition("/")[0].lower() not in _SITES:
        return source
    page = urlsplit(source if is_address else f"https://{source}")
    if page.netloc.lower() not in _SITES:
        raise ValueError(
            f"{source!r} is a page of another site than the Hugging Face Hub; download what is there, and pass its path"
        )
    parts = [unquote(part) for part in page.path.split("/") if part]
    owner_and_name, rest = parts[:2], parts[2:]
    is_repository = len(owner_and_name) == 2 and parts[0] not in _NO_MODELS
    if not is_repository or (rest and (rest[0] not in _AT_REVISION or len(rest) == 1)):
        raise ValueError(f"{source!r} is no page of a model on the Hub; write its name there, 'organization/name'")
    revision, file = rest[1:2], rest[2:]
    return "/".join([*owner_and_name, *file]) + "".join(f"@{name}" for name in revision)
