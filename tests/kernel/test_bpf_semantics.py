"""The unit tests of what the instructions do, on this kernel too."""

from tests.unit.test_bpf_semantics import *  # noqa: F403
