"""The few exceptions of the library, each with the exit code the command line gives it (sysexits where one fits)."""


class SpeechFTMergeError(Exception):
    """Something the user can act upon: the message says what was found, what was expected and what to do."""

    exit_code = 1


class UsageError(SpeechFTMergeError, ValueError):
    """An argument or recipe that cannot be meant."""

    exit_code = 2


class CheckpointError(SpeechFTMergeError, ValueError):
    """A checkpoint that is damaged, hostile or of a kind that cannot be read."""

    exit_code = 65


class MismatchError(CheckpointError):
    """Two readable checkpoints that do not belong together, or data that must not be merged."""


class NotFoundError(SpeechFTMergeError, FileNotFoundError):
    """No such file, folder, or weights in it; or they may not be read."""

    exit_code = 66


class OutputError(SpeechFTMergeError, OSError):
    """The output cannot be created where it was asked for."""

    exit_code = 73


class WriteError(OutputError):
    """Writing began and failed: disk full, quota, I/O error."""

    exit_code = 74


class TemporaryError(SpeechFTMergeError):
    """The network, the Hub or its limits stood in the way; the same call may work later."""

    exit_code = 75
