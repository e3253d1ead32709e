"""In CI a skipped test is a failure, since nobody would run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "plain": "import pytest\ndef test_it():\n    pytest.skip('no reason')\n",
    "module": "import pytest\npytest.skip('no reason', allow_module_level=True)\n",
    "fixture": "import pytest\n@pytest.fixture\ndef it():\n    pytest.skip('no')\ndef test_it(it):\n    pass\n",
}
EXCUSED = {
    "gpu": "import pytest\n@pytest.mark.gpu\ndef test_it():\n    pytest.skip('no GPU')\n",
    "xfail": "import pytest\n@pytest.mark.xfail\ndef test_it():\n    assert False\n",
}


def _pytest(folder: Path, text: str, repository: Path, **environment: str) -> int:
    shutil.copy(repository / "tests" / "conftest.py", folder)
    shutil.copy(repository / "pyproject.toml", folder)
    (folder / "test_case.py").write_text(text, encoding="utf-8")
    clean = {key: value for key, value in os.environ.items() if key != "PREFRESTORE_NO_SKIP"}
    clean["PYTHONPATH"] = str(repository / "tests")  # conftest.py imports support/
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_case.py"]
    return subprocess.run(
        command, cwd=folder, env={**clean, **environment}, capture_output=True, check=False
    ).returncode


@pytest.mark.parametrize("name", list(CASES))
def test_a_skip_fails_in_ci_only(name: str, repository: Path, tmp_path: Path) -> None:
    assert _pytest(tmp_path, CASES[name], repository) in (0, 5)
    assert _pytest(tmp_path, CASES[name], repository, PREFRESTORE_NO_SKIP="1") not in (0, 5)


@pytest.mark.parametrize("name", list(EXCUSED))
def test_what_cannot_run_here_is_excused(name: str, repository: Path, tmp_path: Path) -> None:
    assert _pytest(tmp_path, EXCUSED[name], repository, PREFRESTORE_NO_SKIP="1") == 0
