"""Weights that others trained: read without unpickling, refused where they do not fit."""
