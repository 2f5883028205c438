"""Offered images: which digest a request means, and when it means none."""

from typing import Any

import pytest

from jobs.spec import JobSpec
from policies.admission import AdmissionError, admit
from policies.bounds import Bounds
from policies.loader import load_policies
from policies.offered import Offered, pinned
from policies.policy import ImageDigest, Policy
from policies.scopes import effective

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
ONE = {"host": "host", "app:1": A, "app:latest": A, "team/app:1": B, "registry.example:5000/x:2": C}


def policy(*images: str, **values: Any) -> Policy:
    """The default policy with these images."""
    return load_policies()["default"].model_copy(update={"images": images, **values})


def request(image: str) -> JobSpec:
    """A job in this image."""
    return JobSpec.model_validate({"image": image, "command": ["true"]})


def refused(image: str, under: Policy, offered: Offered) -> tuple[str, Any]:
    """Why an image is refused, and what is allowed."""
    with pytest.raises(AdmissionError) as caught:
        admit(request(image), under, images=offered)
    [violation] = caught.value.violations
    assert (violation.field, violation.got) == ("image", image)
    return violation.message, violation.allowed


@pytest.mark.parametrize(
    ("image", "digest"),
    [
        ("app:1", A),
        ("app", A),
        ("app:latest", A),
        (f"app@{A}", A),
        (f"app:1@{A}", A),
        (A, A),
        ("registry.example:5000/x:2", C),
        (f"registry.example:5000/x@{C}", C),
        ("app:2", None),
        (f"app@{B}", None),  # the digest is another repository's
        (f"app:2@{A}", None),
        (f"team/app:1@{A}", None),
        ("sha256:" + "0" * 64, None),
        ("x:2", None),
        ("App", None),
        ("", None),
        ("a@b", None),
        ("host", None),
    ],
)
def test_a_request_means_a_digest(image: str, digest: str | None) -> None:
    """By name, by digest, or both, when they belong together."""
    assert Offered([ONE]).digest_of(image) == digest


def test_all_workers_of_a_pool_must_agree() -> None:
    """A job may come to any of them: what one of them lacks, or has with another digest, is not offered."""
    under = policy("*:*", "*@*")
    two = Offered([ONE, {**ONE, "app:1": B, "more:1": C}])
    assert two.digest_of("app") == A
    assert (two.digest_of("app:1"), two.digest_of("more:1")) == (None, None)
    for image in ("app:1", "more:1", f"app:1@{A}"):
        assert refused(image, under, two)[0].startswith("not every worker of the pool default")
    assert refused("other", policy("*"), two)[0] == "the workers of the pool default do not have this image"
    assert "no worker of the pool default answers" in refused("app:1", under, Offered([]))[0]


def test_a_refusal_tells_what_there_is_of_what_the_policy_allows() -> None:
    """Names that a policy does not let through are not told, nor whether they are there."""
    under = policy("app:*", "host")
    _, allowed = refused("app:9", under, Offered([ONE]))
    assert allowed == ["app:1", "app:latest", "host"]
    here, nowhere = (refused(image, under, Offered([ONE])) for image in ("team/app:1", "team/app:9"))
    assert here == nowhere == ("the policy default does not allow this image", ["app:*", "host"])


def test_the_admission_has_name_and_digest() -> None:
    """`host` has none; where nobody was asked there is none either."""
    admission = admit(request("app"), policy("app"), images=Offered([ONE]))
    assert (admission.image, admission.image_digest) == ("app", A)
    assert admit(request("host"), policy("host"), images=Offered([ONE])).image_digest is None
    assert admit(request("app"), policy("app")).image_digest is None


def test_a_digest_beside_a_tag_is_allowed_where_the_tag_is() -> None:
    """Beside a name without a tag it is not: it could be any image of the repository."""
    for image in ("app:1", f"app:1@{A}"):
        assert admit(request(image), policy("app:1"), images=Offered([ONE])).image_digest == A
    for pattern, image in (("app", f"app@{A}"), ("app:1", f"app@{A}"), ("app:2", f"app:1@{A}")):
        assert "does not allow" in refused(image, policy(pattern), Offered([ONE]))[0]
    pinned_only = policy(f"app@{A}")
    assert admit(request(f"app@{A}"), pinned_only, images=Offered([ONE])).image_digest == A
    assert "does not allow" in refused("app:1", pinned_only, Offered([ONE]))[0]


def test_a_policy_or_a_scope_can_demand_a_digest() -> None:
    """The refusal says with which one; `host` has none and is not asked for one."""
    strict = effective(
        policy("app:*", "host"), [("platform", Bounds.model_validate({"image_digest": "required"}))]
    )
    assert strict.image_digest == "required"
    message, allowed = refused("app:1", strict, Offered([ONE]))
    assert (message, allowed) == ("the policy default demands the digest of the image", f"app:1@{A}")
    assert refused("app:7", strict, Offered([ONE]))[1] == "app:7@sha256:…"
    assert admit(request(f"app:1@{A}"), strict, images=Offered([ONE])).image_digest == A
    assert admit(request("host"), strict, images=Offered([ONE]))


def test_a_digest_in_the_name_of_a_registry_is_none() -> None:
    """What only looks as if it had one has none."""
    strict = policy("*", image_digest=ImageDigest.REQUIRED)
    assert (
        "demands the digest"
        in refused("sha256:5000/app", strict, Offered([{"sha256:5000/app:latest": A}]))[0]
    )


@pytest.mark.parametrize(
    ("image", "digest"), [("app:1", A), ("app", A), (f"app@{A}", A), (f"app:1@{A}", A), (A, A)]
)
def test_what_is_pinned_means_that_digest_and_no_other(image: str, digest: str) -> None:
    """So a worker sees whether a stored digest can be that of the request."""
    assert pinned(image, digest).digest_of(image) == digest
    other = pinned(image, B).digest_of(image)
    assert other == (None if "sha256" in image else B)
    for wrong in (None, "", "host", "sha256:0", "../x"):
        assert pinned(image, wrong).digest_of(image) is None
