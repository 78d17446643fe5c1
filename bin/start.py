"""Starts a program of this checkout, wherever that was moved to: start.py PROGRAM [ARG ...]."""

import os
import sys

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

try:
    sys.path.insert(0, HERE)  # before the place that .venv was made for
    program = sys.argv.pop(1)
    sys.argv[0] = os.path.join(HERE, "bin", program)
    if program == "rebaser":
        from rebaser.cli import main
    else:
        from rebaser.sage_rebase import main
except KeyboardInterrupt:
    sys.exit(130)
main()
