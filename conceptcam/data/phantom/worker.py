"""A process that draws one part of a request; `cache.render` starts it.

It reads the request from standard input and writes the arrays to standard output.
"""

import pickle
import sys

from conceptcam.data.phantom.cache import render_part

if __name__ == "__main__":
    pickle.dump(render_part(pickle.load(sys.stdin.buffer)), sys.stdout.buffer)
