"""What people use in a browser or over HTTP."""
