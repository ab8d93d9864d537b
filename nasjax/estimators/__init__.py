"""Performance estimation: how good a child is. Meets strategies in `search` only."""
