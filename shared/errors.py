"""The one error that a user can cause, and the one warning."""


class TalkheadError(Exception):
    """One sentence for the user: what is wrong, where, and what to do. The CLI prints it and exits with 2."""


class TalkheadWarning(UserWarning):
    """One sentence for the user about something that may be wrong. The CLI prints it and goes on."""


class MachineError(TalkheadError):
    """As its parent, but what the user gave is fine and the machine refuses: work done so far is kept to go on with."""
