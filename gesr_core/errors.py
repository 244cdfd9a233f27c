"""Errors a person can cause, each with the exit code of the job that meets it. Runs anywhere; imports nothing."""


class GesrError(Exception):
    """A failure worth a retry (exit code 1) unless a subclass says otherwise."""

    exit_code = 1


class ConfigurationError(GesrError):
    """The configuration or the command line is wrong; a retry cannot help."""

    exit_code = 2


class InputError(GesrError):
    """A table, column, checkpoint or day that the job needs is missing or wrong; a retry cannot help."""

    exit_code = 3


class GateRefused(GesrError):
    """The scored shards are complete, but the gate refused to publish them."""

    exit_code = 4


class AnotherRunWon(GesrError):
    """Another run published this `ds` first; this one changed nothing."""

    exit_code = 5
