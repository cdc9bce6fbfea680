"""The second level: kernels over buffers with fixed places, all that the emitters see."""
