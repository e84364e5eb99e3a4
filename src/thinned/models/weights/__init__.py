"""Weights that others trained: read without unpickling, named as ours, refused where they do not fit."""
