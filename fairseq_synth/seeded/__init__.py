"""Frozen tensors from a seed: drawn alike everywhere, left out of checkpoints, or never held at all."""
