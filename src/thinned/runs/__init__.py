"""A run as a folder: train, resume, evaluate, predict, audit, prove, report."""
