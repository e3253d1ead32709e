"""Pref-Restore: blind face restoration that is faithful, repeatable and says where it guessed.

``restore`` restores a photograph, ``PrefRestorePipeline`` and ``shipped_weights`` are its parts; they are loaded, and
torch with them, when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefrestore.serving.library import PrefRestorePipeline, restore, shipped_weights

__all__ = ["PrefRestorePipeline", "restore", "shipped_weights"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Return what is loaded late (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prefrestore.serving import library

    return getattr(library, name)
