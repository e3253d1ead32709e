"""Fail if a file named as argument is larger than a mebibyte: data and weights belong to DVC, not to git."""

import sys
from pathlib import Path

LIMIT = 2**20

large = [name for name in sys.argv[1:] if Path(name).is_file() and Path(name).stat().st_size > LIMIT]
for name in large:
    print(f"{name}: larger than 1 MiB")
sys.exit(bool(large))
