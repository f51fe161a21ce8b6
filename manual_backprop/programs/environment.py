"""Everything that a run depends on and its options do not say."""

import importlib.metadata
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from manual_backprop import kernels
from manual_backprop.kernels import processor

PACKAGES = ("torchvision", "tensorboard", "manual_backprop")


def environment(device: torch.device) -> dict[str, Any]:
    """The machine, the versions and the command line, by name."""
    cpu = processor.said("model name") or platform.processor()
    return {
        "command": " ".join(sys.argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernel": kernels.chosen(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "torch": torch.__version__,  # with its build, which the metadata leaves out
    }


def _git_commit() -> str | None:
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None
