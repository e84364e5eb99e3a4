"""The command line: one file for each family of commands; arguments in, one call, text out."""
