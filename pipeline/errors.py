"""Errors that end in one line for the user. Imports nothing, so that the command line starts fast."""


class UserError(ValueError):
    """The user's words are off: field, value seen, what is allowed, what to do. Exit code 2."""


class WorkError(RuntimeError):
    """Failed while working (disk full, damaged shard, dead worker): what, where, what to do. Exit code 1."""
