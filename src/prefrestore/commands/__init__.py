"""Commands of the program: each module exports one click command named ``command``, found by its file name.

A module here is imported by ``--help``, so it imports what is heavy inside its functions.
"""
