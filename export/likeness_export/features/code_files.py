"""The source files that an encoder is made of: another version of one of them may compute other features."""

from __future__ import annotations

import ast
import sys
from importlib.util import resolve_name
from pathlib import Path

from likeness_export import encoders

_ENCODERS = Path(encoders.__file__).parent


def code_files(*modules: str) -> list[Path]:
    """Return the files of loaded modules and of what they import, directly or not, beside them or of our encoders."""
    folders = {_ENCODERS, *(Path(str(sys.modules[name].__file__)).parent for name in modules)}
    found: set[Path] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = Path(getattr(sys.modules.get(name), "__file__", None) or "")  # built in, or not loaded: no file
        if path.suffix != ".py" or path.parent not in folders or path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                of = resolve_name("." * node.level + (node.module or ""), sys.modules[name].__package__)
                waiting += [of, *(f"{of}.{alias.name}" for alias in node.names)]
    return sorted(found)
