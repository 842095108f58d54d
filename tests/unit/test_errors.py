"""pykcm's exceptions: kinds, texts, and copies that keep all they know."""

from __future__ import annotations

import errno
import pickle

import pytest

from pykcm import errors

EXAMPLES = [
    errors.KCMOSError(errno.EINVAL, "why"),
    errors.AttachError(errno.EALREADY, "why"),
    errors.CapabilityError(errno.EPERM, "why"),
    errors.Disconnected(errno.EPIPE, "why"),
    errors.UnavailableError(errno.EAFNOSUPPORT, "why"),
    errors.MessageTruncated(errno.EMSGSIZE, "why", b"begin"),
    errors.VerifierError(errno.EACCES, "why", "the log"),
    errors.FramingError(errno.EBADMSG, "why"),
    errors.BPFError(errno.EMFILE, "why"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_copies(error: errors.KCMOSError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.errno, str(copy), vars(copy)) == (error.errno, str(error), vars(error))


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_kinds(error: errors.KCMOSError) -> None:
    assert isinstance(error, errors.KCMError)
    assert isinstance(error, OSError)
    assert str(error).startswith(f"why [{errno.errorcode[error.errno or 0]}: ")


def test_the_standard_kinds() -> None:
    assert issubclass(errors.Disconnected, ConnectionError)
    assert issubclass(errors.CapabilityError, PermissionError)
    assert issubclass(errors.AssemblyError, ValueError)
