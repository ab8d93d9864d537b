"""Types, configuration, keys and tree helpers: imports no other nasjax module."""
