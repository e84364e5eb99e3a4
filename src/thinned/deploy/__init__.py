"""Runs that answer elsewhere: artifacts that stand alone, and a service."""
