"""``python -m manual_backprop``: the command line without the script."""

import sys

from manual_backprop.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
