"""Causal tracing proper: noise, mediators, and the engines that compute the scores.

Importing this package does not import torch; its submodules do, apart from `mediators`.
"""
