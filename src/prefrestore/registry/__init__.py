"""Model versions, aliases, releases."""
