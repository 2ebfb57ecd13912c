"""The log says in words what was asked for over the control socket, and no more than was asked."""

import pytest

from fcgimgr.control.messages import Params, ReloadParams, Request, ShutdownParams, UpdateParams
from fcgimgr.manager.commands.server import wish


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("reload", ReloadParams(names=("app", "shop")), "reload app shop"),
        ("reload", ReloadParams(names=("app",), canary=5.0, wait=False), "reload app canary 5"),
        ("reload", ReloadParams(names=("app",), action="promote"), "reload app promote"),
        ("update", UpdateParams(), "update"),
        ("update", UpdateParams(dry_run=True), "update dry_run"),
        ("shutdown", ShutdownParams(now=True), "shutdown now"),
    ],
)
def test_a_wish_is_logged_in_words(method: str, params: Params, words: str) -> None:
    assert wish(Request(id=1, method=method, params=params)) == words
