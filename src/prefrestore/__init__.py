"""Pref-Restore: blind face restoration that is faithful, repeatable and says where it guessed."""

__version__ = "0.1.0"
