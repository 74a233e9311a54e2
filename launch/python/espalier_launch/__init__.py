"""What the Python programs of launch/ share: messages, exit codes, command lines, their ends."""
