"""``python -m sublayer``."""

from sublayer.cli import main

main()
