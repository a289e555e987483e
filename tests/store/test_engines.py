"""What is said of one engine alone is said of tests that exist."""

from __future__ import annotations

import importlib

import pytest

from tests.store.engines import ENGINES, SQLITE_ALONE, engines_of


@pytest.mark.parametrize("name", SQLITE_ALONE)
def test_what_is_sqlites_alone_exists_and_has_a_store(name: str) -> None:
    module, _, function = name.partition("::")
    test = getattr(importlib.import_module(f"tests.store.{module}"), function)

    assert {"store", "url", "places", "rack"} & set(test.__code__.co_varnames[: test.__code__.co_argcount])
    assert engines_of(f"tests.store.{module}", function) == ("sqlite",)
    assert engines_of(f"tests.store.{module}", f"{function}_and_more") == ENGINES
