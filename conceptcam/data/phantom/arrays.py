"""Names for the kinds of numpy arrays that the phantom passes around; they tell the reader, not the checker."""

from typing import Any, TypeAlias

from numpy.typing import NDArray

Floats: TypeAlias = NDArray[Any]
Ints: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[Any]
