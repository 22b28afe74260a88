"""The Python API: load a model and trace prompts, by the code path of the command line.

What the keys `model.*`, `noise.*` and `engine.*` of the config are called there, arguments are
called here; the same schema checks them.
"""
