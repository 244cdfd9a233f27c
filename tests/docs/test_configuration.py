"""The configuration reference is what is generated from the code and conf/base, and says what every key means."""

from __future__ import annotations

from docs.configuration import PAGE, page, without_meaning


def test_the_configuration_reference_is_generated_anew_with_every_change() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.configuration"


def test_every_key_says_what_it_means() -> None:
    assert not without_meaning(), "write a comment above these keys in gesr_core/config.py, or in conf/base"
