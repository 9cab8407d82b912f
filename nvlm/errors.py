"""Errors made for users: a clear message that names the file, the key or the sample.

The command line prints these without a stack trace and exits with code 2. Broken invariants of our
own are `assert`s and keep their stack trace.
"""


class NvlmError(ValueError):
    """Something the user can put right. The message says what was found and what to do.

    Several arguments are several problems: the command line gives each a line of its own.
    """

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


class ConfigError(NvlmError):
    """A YAML file, an override or a combination of settings is wrong."""


class DataError(NvlmError):
    """A shard, a sample or an index is wrong."""


class CheckpointError(NvlmError):
    """A checkpoint is missing, incomplete or does not fit the run."""


class ConvertError(NvlmError):
    """A Hugging Face folder is missing, of another architecture, or its tensors do not fit."""


class TrainingError(NvlmError):
    """Training cannot go on, such as after a loss that is not a number."""
