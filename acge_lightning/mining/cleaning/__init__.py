"""Cleaning: what of a pile of rows is markup, useless, repeated, leaked, contradicted or doubtful, and writing the rest."""
