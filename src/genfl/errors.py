"""Errors that a user can act on."""


class GenflError(Exception):
    """Something failed that the user did not cause; the command ends with exit code 1."""


class InputError(GenflError, ValueError):
    """A wrong input. Its message is one line a problem, naming the field and the fix; exit code 2."""
