"""The Triton kernels against reference.py: natively where there is a GPU, else interpreted."""

import inspect

import pytest

from reference_model.kernels import BACKENDS, load_backend, reference


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_has_the_functions_of_the_reference(name):
    backend = load_backend(name)
    for function_name, function in inspect.getmembers(reference, inspect.isfunction):
        if "quantize" in function_name or "gemm" in function_name:
            assert inspect.signature(getattr(backend, function_name)) == inspect.signature(function)
