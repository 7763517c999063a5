"""Images that depend on each other: groups, and signs that groups are missing."""
