"""``python -m prefrestore``."""

from prefrestore.cli import main

main()
