"""How a problem ends the program: one message and an exit code, as those of espalier."""

USAGE, BAD_CONTENT, NO_INPUT, UNAVAILABLE, CANNOT_CREATE, STOPPED = 64, 65, 66, 69, 73, 75


class Problem(Exception):
    """What happened (why). What to do."""

    def __init__(self, code, what, why, do):
        super().__init__(f"{what} ({why}). {do}")
        self.code = code
