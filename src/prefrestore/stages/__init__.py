"""One file per row of the stage table: load, call the library, save."""
