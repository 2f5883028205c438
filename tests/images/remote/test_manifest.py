"""Manifests and indexes: what is taken, what is refused, and that nothing else can come of any bytes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    LAYERS_MAX,
    MANIFEST_MAX,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    Platform,
    check_config,
    choose,
    parse_manifest,
)
from worker.images.remote.reference import is_digest

DIGEST = "sha256:" + "a" * 64
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 2}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 3}
GOOD = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}


def parse(document: Any, media_type: str = OCI_MANIFEST) -> Manifest | Index:
    return parse_manifest(json.dumps(document).encode(), media_type, "it")


def entry(platform: str, digest: str = DIGEST, media_type: str = OCI_MANIFEST) -> dict[str, Any]:
    system, architecture, variant = (*platform.split("/"), "")[:3]
    about = {"os": system, "architecture": architecture, "variant": variant}
    return {"mediaType": media_type, "digest": digest, "size": 5, "platform": about}


def test_oci_s_and_docker_s_manifests_are_understood() -> None:
    """Both kinds, with what else they hold left alone."""
    docker = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {**CONFIG, "mediaType": "application/vnd.docker.container.image.v1+json"},
        "layers": [
            {**LAYER, "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "urls": ["http://x"]}
        ],
    }
    assert isinstance(parse({**GOOD, "annotations": {"a": "b"}, "unknown": 1}), Manifest)
    assert isinstance(parse(docker, DOCKER_MANIFEST), Manifest)
    for kind in (OCI_INDEX, DOCKER_INDEX):
        assert isinstance(parse({"schemaVersion": 2, "manifests": [entry("linux/amd64")]}, kind), Index)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({**GOOD, "manifests": []}, "a manifest and an index at once"),
        ({**GOOD, "schemaVersion": 1}, "schemaVersion 2"),
        ({**GOOD, "schemaVersion": True}, "schemaVersion 2"),
        ({**GOOD, "mediaType": OCI_INDEX}, "was sent as"),
        ({**GOOD, "mediaType": ["x"]}, "was sent as"),
        ({**GOOD, "layers": [LAYER] * (LAYERS_MAX + 1)}, "at most 128"),
        ({**GOOD, "layers": [{**LAYER, "size": -1}]}, "size"),
        ({**GOOD, "layers": [{**LAYER, "size": "3"}]}, "size"),
        ({**GOOD, "layers": [{**LAYER, "size": 3.0}]}, "size"),
        ({**GOOD, "layers": [{**LAYER, "size": True}]}, "size"),
        ({**GOOD, "layers": [{**LAYER, "size": 1 << 63}]}, "size"),
        ({**GOOD, "layers": [{**LAYER, "digest": "md5:" + "a" * 32}]}, "digest"),
        ({**GOOD, "layers": [{**LAYER, "digest": "sha256:../../x"}]}, "digest"),
        ({**GOOD, "layers": [{**LAYER, "digest": DIGEST.upper()}]}, "digest"),
        ({**GOOD, "layers": [{**LAYER, "digest": DIGEST + "\n"}]}, "digest"),
        ({**GOOD, "layers": [{**LAYER, "mediaType": "application/vnd.wasm"}]}, "it is no image"),
        (
            {**GOOD, "config": {**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}},
            "it is no image",
        ),
        ({**GOOD, "config": {**CONFIG, "size": MANIFEST_MAX + 1}}, "its config has"),
        ({**GOOD, "config": None}, "config"),
        ({"schemaVersion": 2}, "config"),
        ([GOOD], "no JSON object"),
    ],
)
def test_what_breaks_a_rule_is_refused(document: Any, reason: str) -> None:
    """With the rule in the message."""
    with pytest.raises(RegistryError) as caught:
        parse(document)
    assert caught.value.fault is Fault.REFUSED and reason in caught.value.reason


@pytest.mark.parametrize(
    "media_type",
    ["application/vnd.docker.distribution.manifest.v1+prettyjws", "application/json", "text/html", ""],
)
def test_other_types_are_refused(media_type: str) -> None:
    """Schema 1 above all, whose layers no digest holds together."""
    with pytest.raises(RegistryError, match="schema 2 or OCI is needed"):
        parse(GOOD, media_type)


def test_an_index_is_read_for_this_machine_s_best_variant() -> None:
    """None said, or the newest that runs here; what is for nothing (attestations) is passed over."""
    digests = ["sha256:" + letter * 64 for letter in "abcd"]
    names = ("unknown/unknown", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8")
    index = Index.model_validate({"manifests": [entry(*pair) for pair in zip(names, digests, strict=True)]})
    arm = Platform(os="linux", architecture="arm")
    assert choose(index, arm, "it").digest == digests[2]
    with pytest.raises(
        RegistryError, match="there is none for linux/amd64; there is: unknown/unknown, linux/arm/v6"
    ):
        choose(index, Platform(os="linux", architecture="amd64"), "it")


def test_an_index_does_not_lead_to_an_index() -> None:
    """Whoever nests them could nest them for ever."""
    index = Index.model_validate({"manifests": [entry("linux/amd64", media_type=OCI_INDEX)]})
    with pytest.raises(RegistryError, match="not to a manifest"):
        choose(index, Platform(os="linux", architecture="amd64"), "it")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"os": "windows", "architecture": "amd64", "rootfs": {"diff_ids": [DIGEST]}},
            "it is for windows/amd64",
        ),
        ({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}}, "1 layers, its config 0"),
        ({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": ["md5:x"]}}, "diff_ids"),
        ({"os": "linux", "architecture": "amd64"}, "rootfs"),
        ([], "no JSON object"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config: Any, reason: str) -> None:
    """Another platform, other layers than the manifest's."""
    manifest = parse(GOOD)
    assert isinstance(manifest, Manifest)
    with pytest.raises(RegistryError, match=reason):
        check_config(json.dumps(config).encode(), manifest, Platform(os="linux", architecture="amd64"), "it")


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([DIGEST, CONFIG]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                "schemaVersion mediaType config layers manifests digest size platform os rootfs diff_ids".split()
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(
    st.binary(max_size=200) | _json.map(lambda value: json.dumps({"schemaVersion": 2, "x": value}).encode())
)
def test_bytes_are_a_manifest_or_refused(body: bytes) -> None:
    """No other exception, whatever they are."""
    for kind in (OCI_MANIFEST, OCI_INDEX):
        with pytest.raises(RegistryError):
            parse_manifest(body, kind, "it")


@given(_json, st.sampled_from(["config", "layers", "manifests", "mediaType"]))
def test_a_field_is_right_or_refused(value: Any, name: str) -> None:
    """Any JSON in any place of a good manifest: either every blob has a size and a digest, or it is refused."""
    try:
        found = parse({**GOOD, name: value})
    except RegistryError as error:
        assert error.fault is Fault.REFUSED
        return
    assert isinstance(found, Manifest)
    assert all(is_digest(blob.digest) and blob.size >= 0 for blob in (found.config, *found.layers))
