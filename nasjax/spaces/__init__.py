"""Search spaces: what can be built, as vectors of decisions. No weights here."""
