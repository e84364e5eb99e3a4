"""The sources of labelled images, a file for each form in which people have them."""
