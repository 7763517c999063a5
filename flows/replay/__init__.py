"""`labelcycle simulate`: strategies replayed on labels that exist already."""
