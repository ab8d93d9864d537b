"""Types, configuration, keys, random draws: imports no other nasjax module."""
