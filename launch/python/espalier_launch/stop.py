"""How a problem ends the program: one message and an exit code."""

import errno

USAGE, BAD_CONTENT, NO_INPUT, UNAVAILABLE, BUG = 64, 65, 66, 69, 70
CANNOT_CREATE, WRITE_FAILED, NO_PERMISSION = 73, 74, 77


def printable(text):
    """Text in one line that every console can show: bytes of a name that are no UTF-8 as \\xff."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character):
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class Stop(Exception):
    """Ends the program with one message: what happened, why, what to do, and the exit code."""

    of_record = True  # where it is about one: it alone is wrong, and others can be read

    def __init__(self, code, what, why, do):
        super().__init__(what)
        self.code, self.what, self.why, self.do = code, what, why, do

    def block(self, program):
        what, why, do = map(printable, (self.what, self.why, self.do))
        return f"{program}: stopped: {what} (exit {self.code})\n  why  {why}\n  do   {do}"


def missing_package(what, error):
    """The Stop where a package that launch/setup.sh installs is not there."""
    do = "run launch/setup.sh and use .venv/bin/python"
    return Stop(UNAVAILABLE, what, str(error), do)


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
