"""Arithmetic: numbers, `+ - * / // % **` and brackets; read as a syntax tree, never evaluated as code."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field

from policies.base.records import Json, ToolCallStatus
from workers.rollout.tool import (
    BadArgumentsError,
    Tool,
    ToolOutput,
    ToolSession,
    text_argument,
    text_schema,
)

ARGUMENT = "expression"
_WRITTEN = str.maketrans({"×": "*", "÷": "/", "−": "-", "\n": " ", "\r": " ", "\t": " "})
_FOREIGN = re.compile(r"[^0-9eE_.()+\-*/% ]")
_BITS_PER_DIGIT = math.log2(10)
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


class _CalculationError(Exception):
    """The expression has no value; the text says why."""


class Calculator(Tool):
    """Computes one expression per call. Its limits on length and size bound its time: there is nothing to kill."""

    class Config(Tool.Config):
        """Settings of `calculator`."""

        max_characters: int = Field(default=200, ge=1, le=1000)
        """Longest expression."""
        max_digits: int = Field(default=300, ge=1, le=4000)
        """Most decimal digits of a whole number, also on the way to the result."""

    config: Config

    def schema(self) -> dict[str, Any]:
        return text_schema(
            self.config.called,
            "Computes an arithmetic expression.",
            ARGUMENT,
            "Numbers, + - * / // % ** and brackets, e.g. (57 + 3) * 8",
        )

    def open(self, seed: int) -> ToolSession:
        return _CalculatorSession(self)

    def compute(self, expression: str) -> str:
        """The value of `expression` as text.

        Raises:
            _CalculationError: it is no arithmetic, or its value is not a number of allowed size.
        """
        text = expression.translate(_WRITTEN).strip()
        if len(text) > self.config.max_characters:
            raise _CalculationError(f"longer than {self.config.max_characters} characters")
        foreign = _FOREIGN.search(text)
        if foreign is not None:
            hint = "; a power is written **" if foreign.group() == "^" else ""
            raise _CalculationError(f"{foreign.group()!r} is not arithmetic{hint}")
        try:
            tree = ast.parse(text, mode="eval")
            value = self._value(tree.body)
        except ZeroDivisionError:
            raise _CalculationError("division by zero") from None
        except OverflowError:
            raise _CalculationError("the number is too large") from None
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise _CalculationError("this is not an arithmetic expression") from None
        return str(value) if isinstance(value, int) else f"{value:.12g}"

    def _value(self, node: ast.expr) -> int | float:
        if isinstance(node, ast.Constant):
            return self._checked(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
            value = self._value(node.operand)
            return value if isinstance(node.op, ast.UAdd) else -value
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            left, right = self._value(node.left), self._value(node.right)
            if isinstance(left, int) and isinstance(right, int):
                self._check_size(node.op, left, right)
            return self._checked(_BINARY[type(node.op)](left, right))
        raise _CalculationError("this is not an arithmetic expression")

    def _check_size(self, kind: ast.operator, left: int, right: int) -> None:
        # Before computing: 9**9**9 must not be tried.
        bits = 0
        if isinstance(kind, ast.Mult):
            bits = left.bit_length() + right.bit_length() - 1
        elif isinstance(kind, ast.Pow) and right > 0 and abs(left) > 1:
            bits = (left.bit_length() - 1) * right + 1
        if bits > self.config.max_digits * _BITS_PER_DIGIT + 1:
            raise _CalculationError(f"the number has more than {self.config.max_digits} digits")

    def _checked(self, value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _CalculationError("the value is not a real number")
        if isinstance(value, float) and not math.isfinite(value):
            raise _CalculationError("the number is too large")
        if isinstance(value, int) and abs(value) >= 10**self.config.max_digits:
            raise _CalculationError(f"the number has more than {self.config.max_digits} digits")
        return value


class _CalculatorSession(ToolSession):
    def __init__(self, tool: Calculator) -> None:
        self._tool = tool

    def call(self, arguments: Mapping[str, Json]) -> ToolOutput:
        try:
            return self._tool.output(self._tool.compute(text_argument(arguments, ARGUMENT)))
        except BadArgumentsError as error:
            return self._tool.output(f"Error: {error}", ToolCallStatus.BAD_ARGUMENTS)
        except _CalculationError as error:
            return self._tool.output(f"Error: {error}", ToolCallStatus.FAILED)
