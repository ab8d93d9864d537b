"""How children learn: losses, the training program, populations, shared weights."""
