"""Checkpoints, seeding, progress, storage: all that touches the machine."""
