"""What the tests ask of a refusal."""

from collections.abc import Callable

import pytest

from jaxcnn.errors import InputError


def message(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
