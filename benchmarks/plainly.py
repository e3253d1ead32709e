"""How a benchmark ends on a user's mistake: one line and exit code 2, as the program does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from prefrestore.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Run a benchmark's ``main``; a mistake, or what a program it called said last, is told in one line."""
    name = Path(sys.argv[0]).stem
    try:
        main()
    except UserError as error:
        said = str(error)
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr or error).strip().splitlines()
        said = lines[-1]
    else:
        return
    print(f"{name}: {said}", file=sys.stderr)
    sys.exit(2)
