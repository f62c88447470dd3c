"""Evaluation: attacks on a classifier become verdict files, and verdict files become tables of samples."""
