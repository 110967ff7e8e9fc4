"""The arguments of TRL's and transformers' configuration classes, read from their source files.

Importing those classes loads torch and takes seconds; reading their fields takes a twentieth of one. A dry run, which
only needs names, types and defaults, uses this; a real run parses with the classes themselves.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any, Literal

# Module file and class, base classes first: later fields of the same name win, as with inheritance.
_CLASSES = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/grpo_config.py", "GRPOConfig"),
    ("trl", "trainer/model_config.py", "ModelConfig"),
)
_PLAIN_TYPES = {"int": int, "float": float, "str": str, "bool": bool, "None": type(None), "list": list, "dict": dict}


def _type_of(node: ast.expr) -> Any:
    """A type hint's syntax tree as a type; what is not understood is Any, which accepts everything."""
    if isinstance(node, ast.Constant):
        return type(None) if node.value is None else Any
    if isinstance(node, ast.Name):
        return _PLAIN_TYPES.get(node.id, Any)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _type_of(node.left), _type_of(node.right)
        return Any if Any in (left, right) else left | right
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id == "Literal":
            return Literal[ast.literal_eval(node.slice)]
        if node.value.id == "list":
            item = _type_of(node.slice)
            return list if item is Any else list[item]  # type: ignore[valid-type]
        if node.value.id == "dict":
            return dict
    return Any


def _default_of(value: ast.expr | None) -> Any:
    """The default in `= value` or `= field(default=value, ...)`; None where it is computed when the class is made."""
    if isinstance(value, ast.Call):
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        if isinstance(given.get("default_factory"), ast.Name) and given["default_factory"].id == "list":  # type: ignore[attr-defined]
            return []
        value = given.get("default")
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def read_arguments() -> dict[str, tuple[Any, Any]]:
    """Every argument by name: its type and its default.

    Raises:
        ImportError: when TRL or transformers is not installed.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for package, file, name in _CLASSES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(f"{package} is not installed: `make install`")
        tree = ast.parse(Path(spec.submodule_search_locations[0], file).read_text(encoding="utf-8"))
        (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        for statement in definition.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[statement.target.id] = (_type_of(statement.annotation), _default_of(statement.value))
    found["optim"] = (Any, "adamw_torch_fused")  # chosen by a function of torch's version
    return found
