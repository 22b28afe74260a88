"""What composes the rooms: one run from its config, sweeps of runs, and what a terminal shows."""
