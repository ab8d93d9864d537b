"""Children and supernets as pure `init` and `apply` functions."""
