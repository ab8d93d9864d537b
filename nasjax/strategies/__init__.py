"""Search strategies: which child is tried next. No networks, no training here."""
