"""Training on the labelled set: the loop, augmentation, temperatures, diagnosis."""
