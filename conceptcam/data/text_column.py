"""A column of many texts, such as the names of images, that loader processes share."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch

from conceptcam._checks import shorten


class TextColumn(Sequence[str]):
    """N texts, kept as the bytes of two tensors.

    A list has a Python object for each text, of which every process that loads images ends up with a copy. Tensors are
    shared by all of them, whether these are forked or spawned. Taking one text makes that text alone.

    Args:
        texts: (N,) the texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._ends = torch.tensor([0, *map(len, encoded)]).cumsum(0)
        self._bytes = torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "TextColumn": ...
    def __getitem__(self, index: int | slice) -> "str | TextColumn":
        if isinstance(index, slice):
            return TextColumn([self[row] for row in range(len(self))[index]])
        row = range(len(self))[index]
        start, end = self._ends[row : row + 2].tolist()
        return self._bytes[start:end].numpy().tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        ends, content = self._ends.tolist(), self._bytes.numpy().tobytes()
        for start, end in itertools.pairwise(ends):
            yield content[start:end].decode("utf-8", "surrogateescape")

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"TextColumn of {len(self)} texts: {shorten(map(repr, self))}"
