"""Layers: a tar with an EROFS index on top (or a directory), and how chains of them are mounted."""
