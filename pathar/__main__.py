"""`python -m pathar`: the same as the `pathar` command."""

import sys

from pathar.cli import main

if __name__ == "__main__":
    sys.exit(main())
