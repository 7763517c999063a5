"""How much is made at a time."""

BLOCK = 2**22
"""Numbers that are made at a time: 16 MiB in float32."""
