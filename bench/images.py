"""Images: how fast a layer is unpacked, beside GNU tar and umoci; what many layers cost a sandbox."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from worker.images import archives, manifest
from worker.images.store import ImageRecord, Store
from worker.images.tree import Caps

TREES = ("usr/sbin", "usr/lib/python3", "usr/lib/python3.11", "usr/share/doc", "etc")
"""What the layer is made of, as far as this machine has it: large programs, and many small files."""
HOST = "host"
FORMS = ("", "+gzip", "+zstd")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: in a file by itself, and as the only one of an image in an OCI layout. size: its archive's bytes."""

    path: Path
    layout: Path
    size: int


def made(directory: Path) -> dict[str, Layer]:
    """The same layer in each form, by its name."""
    trees = [tree for tree in TREES if Path("/", tree).is_dir()]
    command = ["tar", "-C", "/", "--format=pax", "--exclude=__pycache__", "-cf", "-", *trees]
    plain = subprocess.run(command, capture_output=True, check=True).stdout
    found = {}
    for form in FORMS:
        content = {
            "": lambda: plain,
            "+gzip": lambda: gzip.compress(plain, 6),
            "+zstd": lambda: zstandard.ZstdCompressor(level=3).compress(plain),
        }[form]()
        layout = directory / f"layout{form}"
        path = write_layout(layout, [plain], [content], form)[0]
        found[f"tar{form}"] = Layer(path, layout, len(plain))
    return found


def write_layout(directory: Path, plain: list[bytes], kept: list[bytes], form: str = "") -> list[Path]:
    """An OCI layout with one image, tagged ``latest``; where its layers are kept."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def document(media_type: str, **value: Any) -> dict[str, Any]:
        return put(media_type, json.dumps(value).encode())

    stored = [put(manifest.LAYERS[0] + form, each) for each in kept]
    diff_ids = [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in plain]
    machine = {"architecture": manifest.architecture(), "os": "linux"}
    root = {"type": "layers", "diff_ids": diff_ids}
    config = document(manifest.CONFIGS[0], **machine, rootfs=root, config={}, history=[])
    image = document(
        manifest.MANIFESTS[0], schemaVersion=2, mediaType=manifest.MANIFESTS[0], config=config, layers=stored
    )
    image["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [image]}))
    return [blobs / each["digest"].removeprefix("sha256:") for each in stored]


# ---- unpacking


def unpackers() -> dict[str, Callable[[Layer, Path], None]]:
    """Who unpacks, as far as they are installed: each a function of a layer and an empty directory."""

    def ours(layer: Layer, target: Path) -> None:
        bring_in(Store(target / "store"), layer.layout)

    def by(*command: str) -> Callable[[Layer, Path], None]:
        def run(layer: Layer, target: Path) -> None:
            words = {
                "PATH": str(layer.path),
                "LAYOUT": f"{layer.layout}:latest",
                "TARGET": str(target / "out"),
            }
            (target / "out").mkdir()
            subprocess.run([words.get(word, word) for word in command], check=True, capture_output=True)

        return run

    found: dict[str, Callable[[Layer, Path], None]] = {"stockade": ours}
    # tar tells the compression from the content where it reads a file itself.
    found["GNU tar"] = by("tar", "-C", "TARGET", "-xf", "PATH")
    if shutil.which("umoci"):
        found["umoci"] = by("umoci", "unpack", "--image", "LAYOUT", "TARGET")
    return found


def bring_in(store: Store, layout: Path) -> ImageRecord:
    """Import an OCI layout."""
    with store.shared(), archives.opened(layout) as (source, _):
        return store.add(source, Caps(), lambda _: None)


def rates(rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, float | None]]:
    """MB of the archive a second, by form and contender: the median of rounds that are taken in turn."""
    with tempfile.TemporaryDirectory(prefix="stockade-bench-", dir="/var/tmp") as name:
        directory = Path(name)
        layers, contenders = made(directory), unpackers()
        found: dict[str, dict[str, float | None]] = {}
        for form, layer in layers.items():
            took: dict[str, list[float]] = {each: [] for each in contenders}
            for number in range(rounds):
                for each, unpack in contenders.items():
                    if each == "umoci" and form.endswith("zstd"):
                        continue  # Debian's does not read it
                    target = directory / "target"
                    target.mkdir()
                    begun = time.perf_counter()
                    unpack(layer, target)
                    took[each].append(time.perf_counter() - begun)
                    shutil.rmtree(target)
                say(f"round {number + 1} of {rounds}, unpacking {form}")
            found[form] = {
                each: layer.size / sorted(times)[len(times) // 2] / 1e6 if times else None
                for each, times in took.items()
            }
        return found


# ---- starting


@contextlib.contextmanager
def small_images(store: Path, counts: tuple[int, ...]) -> Iterator[dict[int, str]]:
    """Images of /bin/true and so many layers, in a store: their digests."""
    program = _archive(_with_libraries("/bin/true"))
    with tempfile.TemporaryDirectory(prefix="stockade-bench-") as directory:
        found = {}
        for count in counts:
            more = [_archive({f"l/{count}-{number}": b"x"}) for number in range(1, count)]
            layout = Path(directory) / str(count)
            write_layout(layout, [program, *more], [program, *more])
            found[count] = bring_in(Store(store), layout).digest
        yield found


def _with_libraries(program: str) -> dict[str, bytes]:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    paths = [program, *(word for word in said.split() if word.startswith("/"))]
    return {path.lstrip("/"): Path(path).read_bytes() for path in paths}


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size, about.mode = len(content), 0o755
            archive.addfile(about, io.BytesIO(content))
    return buffer.getvalue()
