"""Figures: which a run gets, and how each is drawn."""
