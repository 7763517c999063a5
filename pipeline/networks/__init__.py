"""Networks and their weights: trunks, heads, where both come from."""
