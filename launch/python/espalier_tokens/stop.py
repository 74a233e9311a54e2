"""How a problem ends the program: one message and an exit code."""

import errno

USAGE, BAD_CONTENT, NO_INPUT, UNAVAILABLE = 64, 65, 66, 69
CANNOT_CREATE, WRITE_FAILED, NO_PERMISSION = 73, 74, 77


class Stop(Exception):
    """Ends the program with one message: what happened, why, what to do, and the exit code."""

    def __init__(self, code, what, why, do):
        super().__init__(what)
        self.code, self.what, self.why, self.do = code, what, why, do

    def block(self):
        first = f"tokenize: stopped: {self.what} (exit {self.code})"
        return f"{first}\n  why  {self.why}\n  do   {self.do}"


def stop_of(error, path, writing=False):
    """The Stop that an OSError on `path` means."""
    why = f"{path}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = f"cannot {'write' if writing else 'read'} '{path}'"
        return Stop(NO_PERMISSION, what, why, "ask for the permission or choose another path")
    if writing:
        return Stop(
            WRITE_FAILED,
            f"writing '{path}' failed",
            why,
            "free space or choose another place with --out, then run the same command again",
        )
    return Stop(NO_INPUT, f"cannot read '{path}'", why, "check the path")
