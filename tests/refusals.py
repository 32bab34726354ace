"""Checking the messages of errors."""

from collections.abc import Callable

import pytest

from jaxcnn.errors import InputError, JaxcnnError


def message(call: Callable[[], object], kind: type[JaxcnnError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
