"""`python -m rebaser`."""

from rebaser.cli import main

main()
