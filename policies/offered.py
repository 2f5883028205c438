"""Offered images: what the workers of one pool have, and which digest a name means on all of them.

A job may come to any worker of its pool. So a name means a digest when every one of them has it, with this digest;
while an image is being brought to one host after the other, its old and its new digest are both refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from policies.image_names import DIGEST, HOST_IMAGE, parse, spellings
from policies.policy import Policy


@dataclass(frozen=True)
class Offered:
    """hosts: for each worker of the pool, its images: digests by their names in full."""

    hosts: Sequence[Mapping[str, str]]

    @cached_property
    def digests(self) -> dict[str, str]:
        """What all of the hosts agree on; without `host`, which every host has its own of."""
        if not self.hosts:
            return {}
        first, *others = self.hosts
        return {
            name: digest
            for name, digest in sorted(first.items())
            if name != HOST_IMAGE and all(other.get(name) == digest for other in others)
        }

    def digest_of(self, image: str) -> str | None:
        """Return the digest that a request means; None where there is no such image, or not everywhere."""
        try:
            named = parse(image)
        except ValueError:
            return None
        if not named.digest:
            return self.digests.get(str(named))
        for name, digest in self.digests.items():
            if digest == named.digest and named.means(parse(name)):
                return digest
        return None

    def under(self, policy: Policy) -> Iterator[tuple[str, str]]:
        """Yield what the policy lets through of it: names as a job may write them, and digests."""
        for name, digest in self.digests.items():
            for spelling in spellings(name):
                if policy.allows_image(spelling):
                    yield spelling, digest
                    break

    def trouble(self, image: str, pool: str) -> str:
        """Say why an image that is not offered is not."""
        if not self.hosts:
            return f"no worker of the pool {pool} answers, so it is not known which images there are"
        if any(Offered((host,)).digest_of(image) for host in self.hosts):
            return f"not every worker of the pool {pool} has this image, or not with the same digest"
        return f"the workers of the pool {pool} do not have this image"


def pinned(image: str, digest: str | None) -> Offered:
    """Return what offers one image and nothing else: a request's, as it was resolved when it was admitted."""
    try:
        named = parse(image)
    except ValueError:
        return Offered(())
    if digest is None or not DIGEST.fullmatch(digest):
        return Offered(())
    return Offered(({str(replace(named, digest="")) or digest: digest},))
