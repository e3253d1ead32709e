"""The preference reward model and its Bradley-Terry training."""
