"""Uncertainty of predictions: samples, scores and what they say together; pure, without a disk."""
