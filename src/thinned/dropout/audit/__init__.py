"""What dropout really does in a network, measured: watch it, measure it, check it, report it."""
