"""Declarations: a kernel says how it is launched, and is what it was."""

from types import SimpleNamespace

import pytest

from s3cache.kernels import Declaration, declare, declared


class Kernel:
    """What a decorator of Triton's returns."""


def test_a_declared_kernel_is_what_it_was() -> None:
    kernel = Kernel()
    assert declare({"x": "*fp32"})(kernel) is kernel
    assert vars(kernel) == {}


def test_the_declarations_of_a_kernel_come_as_they_are_read() -> None:
    @declare({"x": "*fp32"}, {"block": 64}, num_warps=8)
    @declare({"x": "*fp16"})
    class kernel(Kernel):  # noqa: N801
        pass

    (found,) = declared(SimpleNamespace(kernel=kernel))
    assert found == (
        "kernel",
        kernel,
        [Declaration({"x": "*fp32"}, {"block": 64}, {"num_warps": 8}), Declaration({"x": "*fp16"}, {}, {})],
    )


def test_kernels_come_in_the_order_of_their_names_in_the_module_and_others_do_not() -> None:
    last, first = declare({"x": "*i8"})(Kernel()), declare({"x": "*i16"})(Kernel())
    module = SimpleNamespace(first=first, undeclared=Kernel(), number=1, last=last)
    assert [name for name, _, _ in declared(module)] == ["first", "last"]


def test_a_kernel_with_two_names_is_found_under_the_first() -> None:
    kernel = declare({"x": "*fp32"})(Kernel())
    ((name, _, declarations),) = declared(SimpleNamespace(kernel=kernel, alias=kernel))
    assert name == "kernel"
    assert len(declarations) == 1


def test_what_is_said_later_of_the_arguments_of_a_declaration_is_not_in_it() -> None:
    signature, constants = {"x": "*fp32"}, {"block": 64}
    kernel = declare(signature, constants)(Kernel())
    signature["x"] = "*fp16"
    constants.clear()
    ((_, _, (found,)),) = declared(SimpleNamespace(kernel=kernel))
    assert found == Declaration({"x": "*fp32"}, {"block": 64}, {})


@pytest.mark.parametrize(
    ("declaration", "text"),
    [
        (Declaration({"x": "*fp32", "size": "i32:16"}, {}, {}), "(x: *fp32, size: i32:16)"),
        (
            Declaration({"x": "*fp32"}, {"block": 64, "kind": "sum"}, {"num_warps": 8}),
            "(x: *fp32; block=64, kind='sum', num_warps=8)",
        ),
    ],
)
def test_a_declaration_is_one_line(declaration: Declaration, text: str) -> None:
    assert str(declaration) == text
