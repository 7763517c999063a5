"""From people's answers to the labelled set, and which labels are probably wrong."""
