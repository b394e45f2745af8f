"""What no honest file holds: values, bytes and numbers that are made to get past checks, the same for the same seed."""

import copy
import json
import math
import random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        10**30,
        10**400,
        -(10**400),
        0.5,
        -0.5,
        1.5,
        1e308,
        math.nan,
        math.inf,
        -math.inf,
    ),
    *(
        "",
        " ",
        "a",
        "0.5",
        "nan",
        "\ud800",
        "\x1b[2J",
        "\x00",
        "../../x",
        "/etc/passwd",
        "x" * 5000,
        "<script>",
        "é\u202e",
    ),
    *([], {}, [[]], [0, 1], [None], {"a": 1}, [[[[[[[[[[1]]]]]]]]]], {"a": {"b": {"c": None}}}, ["a", "a"], [1] * 1000),
)


def value(chance: random.Random) -> Any:
    """One of the values, or a number of any size."""
    if chance.random() < 0.2:
        return chance.choice((1, -1)) * 10 ** chance.uniform(-320, 308)
    return copy.deepcopy(chance.choice(VALUES))


def mutated(chance: random.Random, content: Any) -> Any:
    """A copy of what a JSON file holds, in which one to three places are removed, renamed or replaced."""
    changed = copy.deepcopy(content)
    for _ in range(chance.randint(1, 3)):
        owner: Any = changed
        while True:
            keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(owner[key], dict | list) and owner[key] and chance.random() < 0.7:
                owner = owner[key]
                continue
            what = chance.random()
            if what < 0.1:
                del owner[key]
            elif what < 0.2 and isinstance(owner, dict):
                owner[f"{key}s"] = owner.pop(key)
            else:
                owner[key] = value(chance)
            break
    return changed


def text(chance: random.Random, content: Any) -> str:
    """The JSON text of a mutated content; now and then cut, doubled or nested beyond reason."""
    found = json.dumps(mutated(chance, content))
    what = chance.random()
    if what < 0.05:
        return found[: chance.randrange(len(found))]
    if what < 0.1:
        return found[:-1] + "," + found[1:]
    if what < 0.12:
        return "[" * 100_000 + found
    return found


def damaged(chance: random.Random, content: bytes) -> bytes:
    """The bytes of a file with some flipped, cut out, put in or cut off."""
    found = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place, what = chance.randrange(len(found) or 1), chance.random()
        if what < 0.6 and found:
            found[place] ^= 1 << chance.randrange(8)
        elif what < 0.75:
            del found[place : place + chance.randint(1, 64)]
        elif what < 0.9:
            found[place:place] = chance.randbytes(chance.randint(1, 64))
        else:
            del found[place:]
    return bytes(found)


def check_sentence(error: Exception, longest: int = 1500) -> None:
    """An error's text is one line, of a length that can be read, and can be printed."""
    said = str(error)
    assert 10 < len(said) < longest, said[:300]
    assert "\n" not in said and "Traceback" not in said, said
    said.encode()
