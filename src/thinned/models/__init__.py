"""The networks, and the forms of convolution that are fast where they run."""
