from __future__ import annotations

import logging

import pytest

from voidbox.cli.log import show_log


def test_what_is_logged_is_shown_while_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("voidbox.somewhere")
    logger.info("before")
    with show_log():
        logger.debug("too much")
        logger.info("refused %s", "TCP")
    logger.info("after")
    assert capsys.readouterr().err == "voidbox: refused TCP\n"
