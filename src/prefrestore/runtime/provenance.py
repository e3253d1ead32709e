"""Which code is running, in which run of a pipeline, and on what."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def git_commit() -> str | None:
    """Return the commit of the source tree this package runs from; None if it is no git checkout."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def pipeline_run() -> str | None:
    """Return the id of the Kubeflow run that this process belongs to, from KFP_RUN_ID; None outside of one."""
    return os.environ.get("KFP_RUN_ID") or None


def accelerators_used() -> int:
    """Return on how many CUDA devices this process has held tensors; torch is asked only if it was loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return sum(torch.cuda.max_memory_allocated(device) > 0 for device in range(torch.cuda.device_count()))
