"""Image files: formats, deep pixels, memory, and what browsers are shown."""
