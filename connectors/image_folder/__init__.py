"""The pool on the disk: folders, manifests, and what of them is not used."""
