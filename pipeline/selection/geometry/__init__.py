"""Positions in, positions out: distances, clusters, covers."""
