"""Many runs at once: arms, seeds, comparison, and published tables run again."""
