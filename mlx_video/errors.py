"""What went wrong, by who can mend it. Bad input is a ``UserError``; anything else is a fault of this package or machine."""


class UserError(ValueError):
    """Bad input, in one sentence that names the value, the rule and a value that works."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named is not there."""
