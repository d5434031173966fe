"""``python -m vpccni.lab.sim``."""

import sys

from vpccni.lab.sim.command import main

if __name__ == "__main__":
    sys.exit(main())
