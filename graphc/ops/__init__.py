"""The operations: one file an op family, each op with its shape rule, derivative, lowering and reference."""
