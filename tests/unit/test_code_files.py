"""Which files the features of an encoder depend on."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from likeness_export.features.code_files import code_files

OF_PHOTOS = {"base.py", "image_common.py", "photo_set.py"}


def test_an_encoder_is_made_of_its_own_file_and_of_what_it_imports_beside_it() -> None:
    found = {path.name for path in code_files("likeness_export.encoders.image_small")}
    assert found == {*OF_PHOTOS, "image_small.py"}


def test_an_encoder_of_another_package_is_made_of_its_own_helpers_and_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {
        "__init__": "",
        "encoder": "import json\nfrom .helper import ONE\nfrom likeness_export.encoders import image_common",
        "helper": "def one():\n    from their_encoders import deeper\nimport their_encoders.deeper as deeper\nONE = 1",
        "deeper": "import math",
        "other": "",
    }
    (tmp_path / "their_encoders").mkdir()
    for name, source in sources.items():
        (tmp_path / "their_encoders" / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("their_encoders.other")
    importlib.import_module("their_encoders.encoder")
    found = code_files("their_encoders.encoder")
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_encoders"]:
        del sys.modules[name]
    theirs = {path.name for path in found if path.parent == tmp_path / "their_encoders"}
    assert theirs == {"__init__.py", "encoder.py", "helper.py", "deeper.py"}
    assert {path.name for path in found} >= OF_PHOTOS
