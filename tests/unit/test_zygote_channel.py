"""What a zygote says is believed to the letter, or not at all."""

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.linux import rights
from fcgimgr.manager.children import zygote_channel
from fcgimgr.manager.children.zygote_channel import Born, Imported, Refused


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (b"ready", Imported()),
        (b"born 12", Born(12)),
        (b"failed 12 cannot fork: no memory", Refused(12, "cannot fork: no memory")),
        (b"failed 12 ", Refused(12, "")),
        (b"failed 12 a\x1b[2Jb\n\xff", Refused(12, "a [2Jb \\xff")),
        (b"ready\n", None),
        (b"ready 1", None),
        (b"born", None),
        (b"born -1", None),
        (b"born \xd9\xa1", None),
        (b"born 1 2", None),
        (b"born 1234567890123456789", None),
        (b"failed 1", None),
        (b"", None),
    ],
)
def test_an_answer_is_what_it_should_be_or_none(answer: bytes, meaning: zygote_channel.Answer | None) -> None:
    assert zygote_channel.understand(answer) == meaning


@given(st.binary(max_size=100))
def test_no_answer_is_an_error(answer: bytes) -> None:
    zygote_channel.understand(answer)


def test_a_request_says_what_differs() -> None:
    request = zygote_channel.request(
        7, {"A": "1", "B": "2", "C": "3"}, {"A": "1", "B": "x=y", "D": ""}, {"FDS": [4, 5]}
    )
    assert request == b"7\0-C\0+B=x=y\0+D=\0*FDS=2"


def test_who_speaks_is_told_by_the_kernel_and_no_descriptors_come_along() -> None:
    ours, its = zygote_channel.channel()
    with ours, its:
        with pytest.raises(BlockingIOError):
            zygote_channel.hear(ours)
        reader, writer = os.pipe()
        try:
            socket.send_fds(its, [b"ready"], [writer])
        except PermissionError:
            assert rights.can_refuse()
            its.send(b"ready")
        os.close(writer)
        assert zygote_channel.hear(ours) == (os.getpid(), b"ready")
        assert os.read(reader, 1) == b""  # Nobody else has the writing end.
        os.close(reader)
        its.close()
        assert zygote_channel.hear(ours) is None
