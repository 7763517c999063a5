"""The commands of `labelcycle`, a module for what they are about; `flows/cli.py` puts them together."""
