"""Values of options that are written as Python: literals and arithmetic, nothing that runs."""

import ast
import operator
from typing import Any, Callable, Dict, Type

from fairseq_synth.errors import UsageError, printable

LONGEST = 4000  # characters of an option
LARGEST = 10_000  # elements of a list that `[...] * n` makes
DIGITS = 64  # binary digits of an exponent's or a shift's worth

_SIGNS: Dict[Type[ast.AST], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_NUMBERS: Dict[Type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def literal(source: Any, *_namespaces: Any) -> Any:
    """What ``eval(source)`` gives for a literal, for arithmetic of numbers, and for lists that are joined or repeated.

    Raises TypeError, as eval does, for what is no text, and UsageError for any other expression: it may come out of a
    file, and is not run.
    """
    if not isinstance(source, str):
        raise TypeError("eval() arg 1 must be a string, bytes or code object")
    try:
        if len(source) > LONGEST:
            raise ValueError(f"it has more than {LONGEST} characters")
        return _value(ast.parse(source.strip(" \t"), mode="eval").body)
    except (ValueError, TypeError, SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        shown = printable(source, 80)
        raise UsageError(
            f"option value {shown}: must be a literal such as 0.1, 1e-3,1e-4 or [(512, 3)] * 2; code is not run "
            f"({printable(error, 60)})"
        ) from error


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)](_number(_value(node.operand)))
    if isinstance(node, ast.BinOp):
        return _combined(node, _value(node.left), _value(node.right))
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_value(element) for element in node.elts)
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError("** in a dict")
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values) if key is not None}
    return ast.literal_eval(node)  # a constant: ValueError for anything else


def _combined(node: ast.BinOp, left: Any, right: Any) -> Any:
    if isinstance(left, (list, tuple)) or isinstance(right, (list, tuple)):
        return _joined(node.op, left, right)
    if isinstance(node.op, ast.Pow) and (abs(_number(right)) > DIGITS or abs(_number(left)) > 2**DIGITS):
        raise ValueError("the power is too large")
    if type(node.op) not in _NUMBERS:
        raise ValueError(f"unknown operation {type(node.op).__name__}")
    return _NUMBERS[type(node.op)](_number(left), _number(right))


def _joined(op: ast.operator, left: Any, right: Any) -> Any:
    """[...] + [...], [...] * n and n * [...], the result bounded before it is made."""
    if isinstance(op, ast.Add) and type(left) is type(right):
        size, result = len(left) + len(right), operator.add
    elif isinstance(op, ast.Mult) and (isinstance(left, int) or isinstance(right, int)):
        size = len(right) * left if isinstance(left, int) else len(left) * right
        result = operator.mul
    else:
        raise ValueError("lists can be joined by + and repeated by * only")
    if size > LARGEST:
        raise ValueError(f"a list of more than {LARGEST} elements")
    return result(left, right)


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float, complex)):
        raise ValueError("arithmetic with what is no number")
    return value
