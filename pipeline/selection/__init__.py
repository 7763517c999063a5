"""Which images to ask for: scores, query strategies, the batch."""
