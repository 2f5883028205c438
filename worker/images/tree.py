"""A layer's tree on disk, made from the entries of a tar archive. Standard library only; runs in the confined child.

Every path is taken apart here and put together again: ``..`` is refused, and the directory of an entry is opened by
openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, so neither a planted symlink nor an absolute name leads
anywhere. Nobody else writes to the tree meanwhile.

Whiteouts (OCI image-spec, layer.md) become what overlayfs takes for them: a character device 0/0, or the attribute
trusted.overlay.opaque, which only our privileged parent can set: `Tree.opaque` names the directories. What an entry
of the same layer says wins over a whiteout, in whichever order they stand.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections import Counter
from typing import NamedTuple

from worker.images import hashes, tar
from worker.images.errors import ImageError, shown
from worker.images.hashes import BENEATH
from worker.sandbox import syscalls as sc

IDS = 65536
"""User and group ids that a sandbox maps; an image may use no others."""
XATTRS_MAX = 2048
"""Bytes of all extended attributes of one file; ext4 has room for about 4 KiB."""
_XATTR = re.compile(rb"user\.(?!overlay\.)[!-~]{1,200}")
_OPEN_DIRECTORIES = 64
_WHITEOUT, _OPAQUE, _AUFS = b".wh.", b".wh..wh..opq", b".wh..wh."
_WHITEOUT_MODE = stat.S_IFCHR
_ZEROS = bytes(1 << 20)


class Caps(NamedTuple):
    """The most that one layer may have."""

    size: int = 16 << 30
    """Bytes of its files, holes included."""
    entries: int = 1_000_000
    depth: int = 128
    """Directories above one another."""
    path: int = 4096
    """Bytes of one path."""
    name: int = 255
    """Bytes of one component."""


class Tree:
    """A new tree in the directory ``root``; ``lines`` is what `hashes.walk` would say of it."""

    def __init__(self, root: int, caps: Caps) -> None:
        self._root, self._caps = root, caps
        self._directories: dict[bytes, int] = {}
        self._times: dict[bytes, int] = {b".": 0}
        self.lines: dict[bytes, bytes] = {b".": _directory_line(0o755, 0, 0, {})}
        self.opaque: set[bytes] = set()
        self.left_out: Counter[str] = Counter()
        self.size = 0

    def fill(self, reader: tar.Reader) -> None:
        """Take in every entry; ``ImageError`` for what no layer may have, ``OSError`` when we fail."""
        for entry in reader:
            parts = self._parts(entry.name)
            if parts and parts[-1].startswith(_WHITEOUT):
                self._whiteout(parts)
            elif not 0 <= entry.uid < IDS or not 0 <= entry.gid < IDS:
                owner = f"{entry.uid}:{entry.gid}"
                raise ImageError(
                    "layer_bad_owner", f"{shown(entry.name)} belongs to {owner}; ids go up to {IDS - 1}"
                )
            elif entry.kind == tar.DIRECTORY:
                self._directory(parts, entry)
            elif not parts:
                raise ImageError("layer_bad_path", "the root of the layer is no directory")
            elif entry.kind == tar.FILE:
                self._file(parts, entry, reader)
            elif entry.kind == tar.SYMLINK:
                self._symlink(parts, entry)
            elif entry.kind == tar.HARD_LINK:
                self._hard_link(parts, entry)
            else:
                self.left_out["device" if entry.kind != tar.FIFO else "fifo"] += 1
        self._finish()

    def _finish(self) -> None:
        """Directories get their times last: what is made in one changes its time."""
        for path in sorted(self._times, reverse=True):
            fd = sc.openat2(self._root, path, os.O_RDONLY | os.O_DIRECTORY, BENEATH)
            os.utime(fd, ns=(self._times[path], self._times[path]))
            os.close(fd)
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()

    # --- paths

    def _parts(self, name: bytes) -> list[bytes]:
        """The components of a name; absolute ones count from the layer's root."""
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise ImageError("layer_bad_path", f"{shown(name)} has .. in it")
        if not name:
            raise ImageError("layer_bad_path", "an entry without a name")
        caps = self._caps
        if len(parts) > caps.depth or len(name) > caps.path or any(len(part) > caps.name for part in parts):
            raise ImageError("layer_bad_path", f"{shown(name)} is too long or too deep")
        return parts

    def _parent(self, parts: list[bytes]) -> int:
        """The directory of an entry, open; made where the archive left it out."""
        path = b"/".join(parts[:-1]) or b"."
        if path in self._directories:
            return self._directories[path]
        if path not in self._times:
            above = self._parent(parts[:-1])
            if self.lines.get(path, hashes.WHITEOUT) != hashes.WHITEOUT:
                raise ImageError(
                    "layer_bad_path", f"{shown(path)} is no directory, and something is to be in it"
                )
            self._replace_whiteout(parts[:-1], above)
            os.mkdir(parts[-2], 0o755, dir_fd=above)
            self._times[path] = 0
            self._note(path, _directory_line(0o755, 0, 0, {}))
        fd = sc.openat2(self._root, path, os.O_PATH | os.O_DIRECTORY, BENEATH)
        if len(self._directories) >= _OPEN_DIRECTORIES:
            os.close(self._directories.pop(next(iter(self._directories))))
        self._directories[path] = fd
        return fd

    def _note(self, path: bytes, line: bytes) -> None:
        """Remember what is at ``path`` now; directories that no entry names count as well."""
        self.lines[path] = line
        if len(self.lines) > self._caps.entries:
            raise ImageError(
                "image_too_large", f"the layer has more than {self._caps.entries} files and directories"
            )

    def _replace_whiteout(self, parts: list[bytes], parent: int) -> None:
        """A directory that takes the place of a whiteout hides what is below it in lower layers."""
        path = b"/".join(parts)
        if self.lines.get(path) == hashes.WHITEOUT:
            os.unlink(parts[-1], dir_fd=parent)
            del self.lines[path]
            self.opaque.add(path)

    def _clear(self, parts: list[bytes], parent: int) -> None:
        """Take away what an earlier entry of this name has made; a directory only makes place for a directory."""
        path = b"/".join(parts)
        if path in self._times:
            raise ImageError("layer_bad_path", f"{shown(path)} was a directory before in this layer")
        if self.lines.pop(path, None) is not None:
            os.unlink(parts[-1], dir_fd=parent)

    # --- entries

    def _directory(self, parts: list[bytes], entry: tar.Entry) -> None:
        path = b"/".join(parts) or b"."
        if parts and path not in self._times:
            parent = self._parent(parts)
            self._replace_whiteout(parts, parent)
            self._clear(parts, parent)
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        fd = sc.openat2(self._root, path, os.O_RDONLY | os.O_DIRECTORY, BENEATH)
        try:
            self._own(fd, entry)
            kept = self._set_xattrs(fd, entry)
        finally:
            os.close(fd)
        self._times[path] = entry.mtime
        self._note(path, _directory_line(entry.mode, entry.uid, entry.gid, kept))

    def _file(self, parts: list[bytes], entry: tar.Entry, reader: tar.Reader) -> None:
        self.size += entry.size
        if self.size > self._caps.size:
            raise ImageError("image_too_large", f"the files of the layer are over {self._caps.size} bytes")
        parent = self._parent(parts)
        self._clear(parts, parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(parts[-1], flags, 0o600, dir_fd=parent)
        try:
            content = _write(fd, entry, reader)
            self._own(fd, entry)
            kept = self._set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)
        self._note(b"/".join(parts), hashes.line("f", entry.mode, entry.uid, entry.gid, content, kept))

    def _own(self, fd: int, entry: tar.Entry) -> None:
        if entry.uid or entry.gid:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)  # last: chown takes the set-id bits away

    def _set_xattrs(self, fd: int, entry: tar.Entry) -> dict[bytes, bytes]:
        """Only ``user.*`` is kept: what overlayfs or the kernel would act upon comes from us or not at all."""
        kept, left = {}, XATTRS_MAX
        for name, value in entry.xattrs.items():
            if _XATTR.fullmatch(name) and len(name) + len(value) <= left:
                left -= len(name) + len(value)
                os.setxattr(fd, name, value)
                kept[name] = value
            else:
                self.left_out["xattr"] += 1
        return kept

    def _symlink(self, parts: list[bytes], entry: tar.Entry) -> None:
        if not entry.link or len(entry.link) >= self._caps.path:
            raise ImageError(
                "layer_bad_path", f"the target of the symlink {shown(entry.name)} is empty or too long"
            )
        parent = self._parent(parts)
        self._clear(parts, parent)
        os.symlink(entry.link, parts[-1], dir_fd=parent)
        if entry.uid or entry.gid:
            os.chown(parts[-1], entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(parts[-1], ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)
        self.left_out.update(["xattr"] * len(entry.xattrs))
        self._note(b"/".join(parts), hashes.link_line(entry.link, entry.uid, entry.gid))

    def _hard_link(self, parts: list[bytes], entry: tar.Entry) -> None:
        target = self._parts(entry.link)
        path, source = b"/".join(parts), b"/".join(target)
        known = self.lines.get(source, b"")
        if source == path or not known.startswith((b"f ", b"l ")):
            problem = f"{shown(entry.name)} is a link to {shown(entry.link)}, which is no earlier file of this layer"
            raise ImageError("layer_bad_link", problem)
        parent = self._parent(parts)
        self._clear(parts, parent)
        # Opened anew: making the other parent may have closed this one.
        there = sc.openat2(self._root, b"/".join(target[:-1]) or b".", os.O_PATH | os.O_DIRECTORY, BENEATH)
        try:
            os.link(target[-1], parts[-1], src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as problem:
            if problem.errno == errno.EMLINK:
                raise ImageError("layer_bad_link", f"{shown(entry.link)} has too many links") from None
            raise
        finally:
            os.close(there)
        self._note(path, known)

    def _whiteout(self, parts: list[bytes]) -> None:
        name = parts[-1]
        if name == _OPAQUE:
            self._parent(parts)
            self.opaque.add(b"/".join(parts[:-1]) or b".")
            return
        if name.startswith(_AUFS):
            self.left_out["aufs metadata"] += 1
            return
        hidden = [*parts[:-1], name[len(_WHITEOUT) :]]
        if hidden[-1] in (b"", b".", b".."):
            raise ImageError("layer_bad_path", f"the whiteout {shown(name)} hides nothing that can be named")
        path, parent = b"/".join(hidden), self._parent(parts)
        if path in self._times:
            self.opaque.add(path)
        elif path not in self.lines:
            os.mknod(hidden[-1], _WHITEOUT_MODE, 0, dir_fd=parent)
            self._note(path, hashes.WHITEOUT)


def _directory_line(mode: int, uid: int, gid: int, xattrs: dict[bytes, bytes]) -> bytes:
    return hashes.line("d", mode, uid, gid, "-", xattrs)


def _write(fd: int, entry: tar.Entry, reader: tar.Reader) -> str:
    """Write the file's content; the SHA-256 of it, holes counted as zeros."""
    total, at = hashlib.sha256(), 0
    for offset, length in entry.extents:
        if offset > at:
            _hash_zeros(total, offset - at)
            os.lseek(fd, offset, os.SEEK_SET)
        for piece in reader.data(length):
            total.update(piece)
            while piece:
                piece = piece[os.write(fd, piece) :]
        at = offset + length
    if at < entry.size:
        _hash_zeros(total, entry.size - at)
        os.ftruncate(fd, entry.size)
    return total.hexdigest()


def _hash_zeros(total: hashlib._Hash, count: int) -> None:
    while count:
        total.update(_ZEROS[: min(count, len(_ZEROS))])
        count -= min(count, len(_ZEROS))
