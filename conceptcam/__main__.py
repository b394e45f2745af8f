"""`python -m conceptcam`: the command line."""

import sys

from conceptcam.cli.main import main

sys.exit(main())
