"""The steps of a round; each writes one file."""
