"""Scorers behind one interface, and their composite."""
