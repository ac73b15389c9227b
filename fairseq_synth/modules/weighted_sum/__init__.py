"""softmax(logits) @ values: one file per way to compute it, and the list that chooses (choose.py)."""
