"""The one error that a user can cause."""


class TalkheadError(Exception):
    """One sentence for the user: what is wrong, where, and what to do. The CLI prints it and exits with 2."""
