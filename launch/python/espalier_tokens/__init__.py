"""Text to token files: what launch/tokenize.py is made of (docs/file-formats.md)."""
