"""Dropout: random bits from keys, masks from bits, and thin Flax layers around them."""
