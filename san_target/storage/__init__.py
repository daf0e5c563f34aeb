"""Blocks on disk: a pool of sparse files, and its faulty and in-memory twins."""
