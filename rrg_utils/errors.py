"""The one exception type that users are meant to read."""


class RRGError(Exception):
    """A mistake the user can mend: one line that names the file, field or option and what to do."""
