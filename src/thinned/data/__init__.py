"""Where labelled images come from, and how they are set apart."""
