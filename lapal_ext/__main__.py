"""``python -m lapal_ext`` and the command ``lapal-ext``."""

import sys

from lapal_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
