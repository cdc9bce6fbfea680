"""What a compiled module needs to run and to train: NumPy and cffi only."""
