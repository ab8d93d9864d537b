"""Measurements whose figures stand in the documents; each prints its own table."""
