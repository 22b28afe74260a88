"""How fast ktrace is, measured against the arithmetic it needs and against its peers."""
