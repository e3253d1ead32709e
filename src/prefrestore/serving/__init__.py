"""Answering restoration requests."""
