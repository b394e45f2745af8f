"""A bar of progress, in a terminal or in a notebook."""

import importlib
from typing import Any


def progress_bar(*, shown: bool, **options: Any) -> Any:
    """A bar of tqdm; in a notebook one of its own.

    A bar that is not shown does not import tqdm's part for notebooks, which warns where ipywidgets is missing.
    """
    return importlib.import_module("tqdm.auto" if shown else "tqdm").tqdm(disable=not shown, **options)
