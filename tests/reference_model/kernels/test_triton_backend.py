"""Every backend offers what the interface names, under the same signatures."""

import inspect

import pytest

from reference_model.kernels import BACKENDS, Fp8Kernels, load_backend

OFFERED = inspect.getmembers(
    Fp8Kernels, lambda member: inspect.isfunction(member) and member.__name__[0] != "_"
)


def test_the_interface_names_fifteen_kernels():
    assert len(OFFERED) == 15


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_has_the_functions_of_the_interface(name):
    backend = type(load_backend(name))
    for kernel, function in OFFERED:
        assert inspect.signature(getattr(backend, kernel)) == inspect.signature(function)
