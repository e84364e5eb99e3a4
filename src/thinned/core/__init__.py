"""What everything stands on: errors, types, addresses of randomness, options, files, pages."""
