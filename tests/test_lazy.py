"""Public names are imported when they are first asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import papyra
import papyra.persistence

PACKAGES = [papyra, papyra.persistence]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_lazily_imported_names_are_those_that_type_checkers_see(package: object) -> None:
    path = Path(str(package.__file__))  # type: ignore[attr-defined]
    told = {
        alias.name: str(node.module)
        for block in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(told) == sorted(package.__all__)  # type: ignore[attr-defined]
    for name, module in told.items():
        assert getattr(package, name) is getattr(sys.modules[module], name)
    assert set(told) <= set(dir(package))


def test_importing_papyra_imports_none_of_its_modules() -> None:
    code = "import papyra, sys; print(*(name for name in sys.modules if 'papyra' in name))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == ["papyra", "papyra._lazy_imports"]


def test_submodules_of_papyra_are_found_as_attributes() -> None:
    code = "import papyra; print(papyra.persistence.records.KINDS, papyra.conf.settings)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "dead_letter" in done.stdout


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
@pytest.mark.parametrize("name", ["Nothing", "_nothing", "nothing"])
def test_a_wrong_name_in_a_lazy_package_is_an_attribute_error(package: object, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(package, name)
    assert not hasattr(package, name)


def test_an_import_error_inside_a_lazily_imported_module_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("import there_is_no_such_module\n")
    monkeypatch.setattr(papyra, "__path__", [*papyra.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        papyra.broken  # type: ignore[attr-defined]  # noqa: B018
