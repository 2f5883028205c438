"""Who imports whom, where import-linter cannot tell."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SANDBOX = sorted((ROOT / "worker" / "sandbox").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module or "")
    return names


def test_the_sandbox_imports_itself_and_the_standard_library() -> None:
    """No file below worker/sandbox names any other module, not even in a function."""
    assert SANDBOX
    for path in SANDBOX:
        others = {
            name
            for name in imported(path)
            if name.partition(".")[0] not in sys.stdlib_module_names and not name.startswith("worker.sandbox")
        }
        assert not others, f"{path.relative_to(ROOT)} imports {others}"


def test_the_launcher_starts_without_any_installed_package() -> None:
    """An interpreter without site-packages can import it; of ours it then holds the sandbox alone."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import worker.sandbox.launcher\n"
        "print(*[m for m in sys.modules if m.partition('.')[0] not in sys.stdlib_module_names])"
    )
    command = [sys.executable, "-I", "-S", "-c", script]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "worker.sandbox.launcher" in loaded
    ours = {name for name in loaded if name not in ("worker", "worker.sandbox", "__main__")}
    assert {name for name in ours if not name.startswith("worker.sandbox.")} == set()


def test_the_client_needs_nothing_of_the_service() -> None:
    """Who imports it loads models and an HTTP client: no web framework, no queue, no Redis, nothing of a worker."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import stockade.client\n"
        "print(*{m.partition('.')[0] for m in sys.modules}, *[m for m in sys.modules if m.startswith('stockade.')])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "stockade.client.plan" in loaded
    assert {name for name in loaded if name.startswith("stockade.") and ".client" not in name} == set()
    assert loaded & {"api", "worker", "fastapi", "starlette", "celery", "kombu", "redis"} == set()


def test_what_handles_an_images_bytes_starts_without_any_installed_package() -> None:
    """The confined children hold themselves, a little of the sandbox, and the standard library."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import worker.images.unpacker, worker.images.decompressor\n"
        "print(*[m for m in sys.modules if m.partition('.')[0] not in sys.stdlib_module_names])"
    )
    command = [sys.executable, "-I", "-S", "-c", script]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "worker.images.unpacker" in loaded
    roots = {".".join(name.split(".")[:2]) for name in loaded if name != "__main__"}
    assert roots == {"worker", "worker.images", "worker.sandbox"}
