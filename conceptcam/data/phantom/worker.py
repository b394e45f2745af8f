"""A process that draws one part of a request; `cache.render` starts it."""

import sys

import numpy as np

from conceptcam.data.phantom.cache import Request, render_part


def main(target: str) -> None:
    """Draw the request that stands on standard input, and write its arrays to `target`."""
    arrays = render_part(Request.from_json(sys.stdin.read()))
    np.savez(target, **arrays._asdict())


if __name__ == "__main__":
    main(sys.argv[1])
