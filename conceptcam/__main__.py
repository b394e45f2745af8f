"""`python -m conceptcam`: the command line."""

import sys

from conceptcam.cli import main

sys.exit(main())
