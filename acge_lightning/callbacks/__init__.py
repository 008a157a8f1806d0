"""Callbacks: each hooks one thing into the training loop."""
