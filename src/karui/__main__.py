"""``python -m karui``: the same as the command ``karui``."""

from __future__ import annotations

import sys

from karui.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
