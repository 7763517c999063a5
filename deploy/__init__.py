"""Servers: those of this machine, and the description of a deployment."""
