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
        said = _text(error.stderr).strip().rpartition("\n")[2] or str(error)
    else:
        return
    print(f"{name}: {said}", file=sys.stderr)
    sys.exit(2)


def _text(printed: str | bytes | None) -> str:
    return printed.decode(errors="replace") if isinstance(printed, bytes) else printed or ""
