"""The tests, a room for each room of ktrace; `support` holds what they share."""

import os

# Before anything imports torch or huggingface_hub, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Micro models gain nothing from threads, and several test processes share the cores.
os.environ["OMP_NUM_THREADS"] = "1"
