"""The suffix engine: the reference engine's numbers, near the arithmetic that they need."""
