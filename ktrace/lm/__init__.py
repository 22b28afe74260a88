"""Language models: where they come from, their module paths, the probe that proves them, hooks.

Importing this package does not import torch; its submodules `load`, `probe` and `hooks` do.
"""
