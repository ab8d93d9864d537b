"""Data sets as arrays in three splits, from scikit-learn, files and TFDS."""
