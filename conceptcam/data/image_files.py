"""Which files the names in a table mean, without opening any: found, missing, repeated, or outside the folder."""

import os
import posixpath
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from conceptcam._checks import shorten
from conceptcam.data.dicom import is_dicom
from conceptcam.data.faults import Fault, OnFault, refuse_fault
from conceptcam.data.table_file import is_unknown

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".pgm", ".ppm"),
    *(".dcm", ".dicom"),
)
"""Suffixes of files that count as images where a folder is listed; what a file is, its content says."""


class FoundImages(NamedTuple):
    """The files that names mean."""

    names: list[str]
    """(n,) paths relative to the folder, with `/` between folders, of the cells that are kept."""
    kept: list[bool]
    """(N,) whether a cell means a file; all of them do, unless faults are listed."""
    unlisted: list[str]
    """Images in the same folders that no name means."""


class _Listing(NamedTuple):
    """What a folder holds."""

    files: frozenset[str]
    broken: frozenset[str]
    """Links to nothing or in a circle."""
    by_stem: dict[str, str]
    """Names without suffix -> files; those that several files share are left out."""


def find_images(
    cells: Sequence[str], folder: Path, where: Callable[[int], str], on_fault: OnFault = refuse_fault
) -> FoundImages:
    """Find the files that the cells of a table mean.

    A cell is a path relative to the folder, or an absolute one inside it; its suffix may be left out where one file
    alone has the name.

    Args:
        cells: (N,) names as written.
        folder: What they are relative to.
        where: Says where a row stands, for messages.
        on_fault: Is given a fault for cells that mean no file, which are then left out.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a cell is empty, an image is outside the folder, missing, or named twice, by whatever spelling.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    root = os.path.abspath(folder)
    paths = [relative_path(cell, root) for cell in cells]
    wrong = _Rows(cells, where, on_fault)
    wrong.leave_out(
        [is_unknown(cell) for cell in cells], "row without an image", "have no image", "name one in each row"
    )
    wrong.leave_out(
        [path is None for path in paths], "image outside the folder", f"name images outside {root!r}",
        "give the folder that holds them all",
    )  # fmt: skip
    listings: dict[str, _Listing] = {}
    inner = f"{os.path.basename(root)}/"
    found: list[str | None] = []
    for path, usable in zip(paths, wrong.kept, strict=True):
        image = _find(path or "", root, listings) if usable else None
        # Names may begin with the folder itself: `images/a.png` in the folder `images`.
        if usable and image is None and (path or "").startswith(inner):
            image = _find((path or "")[len(inner) :], root, listings)
        found.append(image)
    missing = [path is None and usable for path, usable in zip(found, wrong.kept, strict=True)]
    wrong.leave_out_for("missing image", missing, lambda: _missing(cells, where, missing, root, listings))
    again = repeats(found)
    wrong.leave_out_for("repeated entry", again, lambda: _say_repeated(found, cells, where))
    names = [path for path, usable in zip(found, wrong.kept, strict=True) if usable and path is not None]
    if not names:
        raise ValueError("none of the images can be used")
    return FoundImages(names, wrong.kept, _unlisted(names, listings))


def unlisted_images(names: Sequence[str], folder: Path) -> list[str]:
    """Images in the folders of named ones that no name means.

    Args:
        names: Paths relative to the folder, with `/` between folders.
        folder: Where they are.
    """
    parents = {posixpath.dirname(name) for name in names}
    return _unlisted(names, {parent: _list(os.path.join(folder, parent)) for parent in parents})


def _unlisted(names: Sequence[str], listings: Mapping[str, _Listing]) -> list[str]:
    known = set(names)
    present = (posixpath.join(parent, file) for parent, listing in listings.items() for file in listing.files)
    return sorted(path for path in present if path not in known and path.lower().endswith(IMAGE_SUFFIXES))


class _Rows:
    """Which rows of a table are kept."""

    def __init__(self, cells: Sequence[str], where: Callable[[int], str], on_fault: OnFault) -> None:
        self.cells, self.where, self.on_fault = cells, where, on_fault
        self.kept = [True] * len(cells)

    def leave_out(self, wrong: Sequence[bool], kind: str, what: str, mend: str) -> None:
        """Leave out rows that do something."""
        shown = _rows(self.cells, self.where, wrong)
        self.leave_out_for(kind, wrong, lambda: f"{sum(wrong)} of {len(wrong)} rows {what}: {shown}; {mend}")

    def leave_out_for(self, kind: str, wrong: Sequence[bool], say: Callable[[], str]) -> None:
        """Leave out rows for a fault that is put into words if there are any."""
        if any(wrong):
            self.on_fault(Fault(kind, say()))
            self.kept = [usable and not bad for usable, bad in zip(self.kept, wrong, strict=True)]


def relative_path(cell: str, root: str) -> str | None:
    """A path relative to the root, in one spelling; None if it leaves the root."""
    path = posixpath.normpath(cell.replace("\\", "/"))
    if path.startswith("/"):
        base = root.replace("\\", "/").rstrip("/") + "/"
        return path[len(base) :] if path.startswith(base) else None
    return None if path == ".." or path.startswith("../") else path


def _list(folder: str) -> _Listing:
    files, broken, stems = set(), set(), {}
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    for entry in entries:
        try:
            is_file = entry.is_file()
            lost = entry.is_symlink() and not os.path.exists(entry.path)
        except OSError:  # a link in a circle
            is_file, lost = False, True
        if is_file:
            files.add(entry.name)
            stem = posixpath.splitext(entry.name)[0]
            stems[stem] = None if stem in stems else entry.name
        elif lost:
            broken.add(entry.name)
    return _Listing(frozenset(files), frozenset(broken), {stem: name for stem, name in stems.items() if name})


def _find(path: str, root: str, listings: dict[str, _Listing]) -> str | None:
    """The file that a path means; folders that were not seen before are listed."""
    parent, name = posixpath.split(path)
    if parent not in listings:
        listings[parent] = _list(os.path.join(root, parent))
    listing = listings[parent]
    if name not in listing.files:
        name = listing.by_stem.get(name, "")
    return posixpath.join(parent, name) if name else None


def _rows(cells: Sequence[str], where: Callable[[int], str], wrong: Sequence[bool]) -> str:
    return shorten([f"{cells[row]!r} ({where(row)})" for row, bad in enumerate(wrong) if bad])


def _missing(
    cells: Sequence[str], where: Callable[[int], str], missing: Sequence[bool], root: str, listings: dict[str, _Listing]
) -> str:
    """The sentence about missing images, with what the folder holds instead."""
    broken = [name for listing in listings.values() for name in listing.broken]
    there = sorted(os.listdir(root))[:3]
    if any(posixpath.basename(cell) in broken for cell, bad in zip(cells, missing, strict=True) if bad):
        hint = "links to nothing, or in a circle, are among them"
    else:
        hint = f"it holds {', '.join(map(repr, there))} ..." if there else "it is empty"
    return f"{sum(missing)} of {len(cells)} images are missing from {root!r}: {_rows(cells, where, missing)}; {hint}"


def repeats(names: Sequence[Hashable]) -> list[bool]:
    """Which names were there before; None is nobody's."""
    seen: set[Hashable] = {None}
    again = []
    for name in names:
        again.append(name is not None and name in seen)
        seen.add(name)
    return again


def _say_repeated(names: Sequence[str | None], cells: Sequence[str], where: Callable[[int], str]) -> str:
    first: dict[str | None, int] = {}
    repeated = [
        f"{cells[first[name]]!r} ({where(first[name])}) and {cells[row]!r} ({where(row)})"
        for row, name in enumerate(names)
        if first.setdefault(name, row) != row and name is not None
    ]
    return (
        f"{len(repeated)} rows name an image that another row names: {shorten(repeated)}; give each image one row, "
        "or say how to merge the rows of several readers with `readers` (--readers)"
    )


def is_image(path: Path) -> bool:
    """Whether a file counts as an image where a folder is listed: by its suffix, or as DICOM, which often has none."""
    if not path.is_file() or path.name.startswith("."):
        return False
    return (
        path.name.lower().endswith(IMAGE_SUFFIXES)
        or (path.suffix == "" or path.suffix[1:].isdigit())
        and is_dicom(path)
    )
