"""What networks learn from labels: settings, lessons, out-of-fold predictions, training."""
