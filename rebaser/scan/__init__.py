"""Scan: which files of a tree are of interest, and what each of them is."""
