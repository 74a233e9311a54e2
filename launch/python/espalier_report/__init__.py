"""A run as one page, and the pictures of it."""
