"""The outside: one room for each system and for the disk; they translate data and errors, and decide nothing."""
