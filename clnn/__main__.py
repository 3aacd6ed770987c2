"""`python -m clnn`: the command line of clnn/cli.py."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
