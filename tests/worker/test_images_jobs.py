"""Jobs in imported images, in real sandboxes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.spec import JobSpec, Step
from policies.admission import admit
from policies.loader import load_policies
from policies.offered import pinned
from tests.images import END, archive, bring_in, digest, directory, entry, listed, oci, root, symlink
from tests.sandboxes import Launcher
from worker.images import collect, reference
from worker.images.chosen import Chosen, admitted_image, choose
from worker.images.store import ImageRecord, Store
from worker.sandbox.errors import SandboxError
from worker.sandbox.images import LAYERS_MAX

pytestmark = [pytest.mark.kernel, pytest.mark.once]
NO_DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """A launcher whose store has no image yet."""
    started = Launcher()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def store(launcher: Launcher) -> Store:
    """That store."""
    return Store(launcher.state / "images")


def imported(store: Store, path: Path, *layers: bytes, **config: object) -> ImageRecord:
    """An image of the programs of this machine with these layers above."""
    return bring_in(store, oci(path, root(), *layers, **config))


def shell(launcher: Launcher, image: str, script: str, **plan: object) -> str:
    """What a script prints in an image."""
    ran = launcher.run(["/bin/sh", "-ec", script], plan={"image": image, **plan})
    return ran.assert_succeeded().stdout.decode()


def test_layers_are_laid_over_one_another(launcher: Launcher, store: Store, tmp_path: Path) -> None:
    """The upper one wins; a whiteout hides a file, an opaque directory all that is below, a directory for a directory
    not."""
    lower = archive(
        *(entry(f"{name}/below", data=b"1") for name in ("merged", "opaque", "again", "gone")),
        entry("hidden", data=b"1"),
        entry("file", data=b"1"),
    )
    upper = archive(
        entry("merged/above"),
        entry("opaque/above"),
        entry("opaque/.wh..wh..opq"),
        entry(".wh.again"),
        entry("again/above"),
        entry(".wh.gone"),
        entry(".wh.hidden"),
        entry("file", data=b"2"),
    )
    image = imported(store, tmp_path / "layout", lower, upper).digest
    said = shell(launcher, image, "ls merged opaque again; ls gone hidden || true; cat file", cwd="/")
    assert said.split() == "again: above merged: above below opaque: above 2".split()


def test_every_owner_of_the_image_is_itself_in_the_job(
    launcher: Launcher, store: Store, tmp_path: Path
) -> None:
    """144, 145: ids 0 to 65535 as in the archive, on disk and in the job; set-id programs get nobody anything."""
    layer = archive(
        *(entry(f"owned/{uid}", uid=uid, gid=uid // 2) for uid in (0, 1, 1000, 65535)),
        entry("owned/su", data=b"#!/bin/sh\nid -u\n", mode=0o4755),
    )
    record = imported(store, tmp_path / "layout", layer)
    said = shell(launcher, record.digest, "cd /owned; stat -c '%n %u %g %a' *; ./su", user=1000, group=7)
    assert said.splitlines() == [
        "0 0 0 644",
        "1 1 0 644",
        "1000 1000 500 644",
        "65535 65535 32767 644",
        "su 0 0 4755",
        "1000",
    ]
    assert shell(
        launcher, record.digest, "id -u; id -g; stat -c '%u %g' /work", user=1000, group=7
    ).split() == [
        *("1000", "7"),
        *("1000", "7"),
    ]


def test_a_job_changes_its_image_for_itself_only(launcher: Launcher, store: Store, tmp_path: Path) -> None:
    """43, 156: what it writes, removes and gives away is in its own upper; the layer is what was unpacked."""
    record = imported(store, tmp_path / "layout", archive(entry("etc/motd", data=b"hello")))
    change = "echo changed >/etc/motd; echo x >>/bin/cat; touch /new; cat /etc/motd"
    assert shell(launcher, record.digest, change) == "changed\n"
    assert shell(launcher, record.digest, "cat /etc/motd; ls /new 2>/dev/null || true") == "hello"
    assert [collect.verify(store, layer) for layer in record.layers] == [[], []]


def test_images_need_not_have_what_a_sandbox_mounts_upon(
    launcher: Launcher, store: Store, tmp_path: Path
) -> None:
    """45, 47: no /proc, /dev, /tmp or /work; or a file, or a symlink to the host, in their place."""
    without = bring_in(store, oci(tmp_path / "without", root())).digest
    planted = archive(
        symlink("proc", b"/etc"),
        entry("dev", data=b"x"),
        symlink("work", b"/../../../var"),
        symlink("tmp", b"proc/1/root"),
    )
    looks = "cat /proc/self/comm; echo y >/dev/null; pwd; touch /tmp/a /work/b; stat -c %a /tmp"
    for image in (without, imported(store, tmp_path / "planted", planted).digest):
        assert shell(launcher, image, looks).split() == ["cat", "/work", "1777"]


def test_images_of_many_layers_run(launcher: Launcher, store: Store, tmp_path: Path) -> None:
    """Up to 128, one over the other. Only the lowest is really unpacked, that the test be quick."""
    first = bring_in(store, oci(tmp_path / "layout", root()))
    layers = [first.layers[0], *(digest(b"%d" % number) for number in range(1, LAYERS_MAX))]
    for number, layer in enumerate(layers[1:], 1):
        tree = store.directory / "layers" / layer[7:] / "tree"
        (tree / "l").mkdir(parents=True)
        (tree / "top").write_text(str(number))
        (tree / "l" / str(number)).touch()
        (store.directory / "at" / layer[7:23]).symlink_to(f"../layers/{layer[7:]}/tree")
    record = first.model_copy(update={"digest": digest(b"many"), "layers": tuple(layers)})
    (store.directory / "images" / record.digest[7:]).write_text(record.model_dump_json())
    said = shell(launcher, record.digest, "cat top; set -- /l/*; echo :$#", cwd="/")
    assert said == f"{LAYERS_MAX - 1}:{LAYERS_MAX - 1}\n"
    assert collect.remove(store, reference.parse(record.digest)) == 0
    assert set(os.listdir(store.directory / "at")) >= {layers[0][7:23]}


def test_a_layer_may_stand_twice_in_an_image(launcher: Launcher, store: Store, tmp_path: Path) -> None:
    """As the empty ones that Docker writes; the upper one counts."""
    one, two = archive(entry("f", data=b"1"), entry("a")), archive(entry("f", data=b"2"), entry(".wh.a"))
    image = imported(store, tmp_path / "layout", END, one, END, two, one, END).digest
    assert shell(launcher, image, "cat /f /a") == "1"


def test_steps_share_the_workspace_and_the_image(launcher: Launcher, store: Store, tmp_path: Path) -> None:
    """A job of two steps in an image."""
    image = imported(store, tmp_path / "layout", archive(entry("etc/step"))).digest
    with launcher.job() as job:
        first = job.run(
            ["/bin/sh", "-c", "echo kept >file; echo lost >/etc/step"], plan={"image": image, "keep": True}
        )
        first.assert_succeeded()
        again = job.run(["/bin/sh", "-c", "cat file /etc/step"], plan={"image": image}).assert_succeeded()
    assert again.stdout == b"kept\n"
    assert again.ended["isolation"]["image"] == image


@pytest.mark.parametrize(
    "image",
    [
        NO_DIGEST,
        "sha256:../../../etc",
        "../host",
        "own/skeleton",
        "python:3.12",
        NO_DIGEST + "\n",
        "",
    ],
)
def test_the_launcher_takes_digests_of_its_store_and_nothing_else(
    launcher: Launcher, store: Store, image: str
) -> None:
    """149: no name and no path of a peer reaches the file system."""
    ended = launcher.run(["/bin/true"], plan={"image": image}).ended
    assert (ended["op"], ended["step"], ended["subject"]) == ("failed", "plan", "image")


def test_what_a_job_runs_in_is_not_removed(launcher: Launcher, store: Store, tmp_path: Path) -> None:
    """Neither by name nor by pruning, until the job has ended; also when its launcher was asked meanwhile."""
    record = imported(store, tmp_path / "layout", archive(entry("mine")))
    name = reference.parse("in-use:1")
    store.tag(name, record.digest)
    with launcher.job() as job:
        job.start(["/bin/sh", "-c", "echo 1; read line; cat /mine; echo ok"], plan={"image": record.digest})
        job.line()
        assert collect.remove(store, name) == 0
        collect.prune(store, most=0)
        assert store.image(record.digest) == record
        assert all(store.layer(layer) for layer in record.layers)
    while store.image(record.digest):
        collect.prune(store, most=0)
    assert os.listdir(store.directory / "layers") == []
    ended = launcher.run(["/bin/true"], plan={"image": record.digest}).ended
    assert (ended["op"], ended["subject"]) == ("failed", "image")


def test_a_damaged_layer_is_quarantined_and_can_come_back(
    launcher: Launcher, store: Store, tmp_path: Path
) -> None:
    """156: what was changed, added or taken away is found; no job starts in it; importing again repairs it."""
    layer = archive(directory("d"), entry("f", data=b"1"), entry("opaque/.wh..wh..opq"), entry(".wh.w"))
    record = imported(store, tmp_path / "layout", layer)
    tree = store.directory / "layers" / record.layers[1].removeprefix("sha256:") / "tree"
    before = listed(tree)
    (tree / "f").write_bytes(b"2")
    (tree / "new").touch()
    (tree / "d").rmdir()
    os.removexattr(tree / "opaque", "trusted.overlay.opaque")
    found = collect.verify(store, record.layers[1])
    assert found == [
        "'d' is gone",
        "'f' has changed",
        "'new' was not there",
        "a directory does not hide what is below it any more",
    ]
    ended = launcher.run(["/bin/true"], plan={"image": record.digest}).ended
    assert (ended["op"], ended["step"]) == ("failed", "image")
    assert "import it again" in ended["hint"]
    assert bring_in(store, tmp_path / "layout").digest == record.digest
    assert listed(tree) == before
    assert shell(launcher, record.digest, "cat /f") == "1"
    store.tag(reference.parse("kept:1"), record.digest)  # without a name it goes when no job runs in it
    collect.prune(store)
    assert len(os.listdir(store.directory / "quarantine")) == 1, (
        "kept to be looked at while the image is there"
    )
    collect.remove(store, reference.parse("kept:1"))


def test_what_the_image_says_applies_and_the_request_overrides(
    launcher: Launcher, store: Store, tmp_path: Path
) -> None:
    """152: Env, WorkingDir and User, by name and by digest; the policy's own user bounds the image's."""
    users = archive(entry("etc/passwd", data=b"app:x:7:9:::\n"), directory("srv/app"))
    config = {"Env": ["PATH=/opt/bin:/bin", "A=image"], "WorkingDir": "/srv//app/", "User": "app"}
    record = imported(store, tmp_path / "layout", users, **config)
    store.tag(reference.parse("app"), record.digest)
    policy = load_policies(None)["default"]
    with launcher.job() as job:
        for name in ("app", "app:latest", record.digest, f"app@{record.digest}"):
            chosen = choose(job.session, name)
            assert chosen == Chosen(
                record.digest, {"PATH": "/opt/bin:/bin", "A": "image"}, "/srv/app", user=7, group=9
            )
        assert job.session.about(10)["images"] == {"app:latest": record.digest, "host": "host"}
        other = imported(store, tmp_path / "other", archive(entry("private"))).digest
        aside = [f"app@{other}", f"app:latest@{other}", f"app:2@{record.digest}", f"other@{record.digest}"]
        for name in ("nothing", "App", NO_DIGEST, *aside):
            with pytest.raises(SandboxError, match="image"):
                choose(job.session, name)
        store.tag(reference.parse("app"), other)  # the tag moves on; what was admitted stays
        spec = JobSpec.model_validate({"image": "app", "command": ["true"]})
        mine = policy.model_copy(update={"images": ("app",)})
        before = admit(spec, mine, images=pinned("app", record.digest))
        assert admitted_image(job.session, before, mine) == chosen
        assert choose(job.session, "app").digest == other
    assert chosen.ids(policy) == (7, 9)
    assert chosen.ids(policy.model_copy(update={"user": 1000})) == (1000, 1000)
    assert chosen.cwd(Step(argv=("x",))) == "/srv/app"
    assert chosen.cwd(Step(argv=("x",), cwd="/work")) == "/work"
    assert shell(launcher, record.digest, "pwd", cwd=chosen.directory) == "/srv/app\n"


def test_a_working_directory_that_leads_into_a_descriptor_is_not_entered(
    launcher: Launcher, store: Store, tmp_path: Path
) -> None:
    """152: CVE-2024-21626, by way of a symlink of the image."""
    image = imported(store, tmp_path / "layout", archive(symlink("srv", b"/proc/self/fd/8"))).digest
    ended = launcher.run(["/bin/true"], plan={"image": image, "cwd": "/srv"}).ended
    assert ended["exec_call"] == "chdir"
    assert ended["exec_errno"] in (errno.ELOOP, errno.ENOENT)
