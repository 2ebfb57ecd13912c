"""What a test may do on the machine that runs it."""

import os

import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do that")
