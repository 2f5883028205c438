"""Which methods an address takes: what a 405 has to say (RFC 9110, section 15.5.6).

The framework names those of the first route whose pattern fits. Here it is every route of the pattern that fits best:
`/v1/keys` takes GET and POST by two routes, and `/v1/jobs/x:cancel` also fits the pattern of `/v1/jobs/{job_id}`.
"""

import re
from collections.abc import Iterable

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

_PARAMETER = re.compile(r"\{[^}]*\}")


class Addresses:
    """Knows the patterns of all addresses."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._routes = [route for route in routes if isinstance(route, Route)]

    def methods(self, scope: Scope) -> list[str]:
        """The methods that the address of a request takes, sorted; none when it fits no pattern."""
        fitting = [route for route in self._routes if route.matches(scope)[0] is not Match.NONE]
        best = max((_exactness(route) for route in fitting), default=0)
        return sorted(
            {method for route in fitting if _exactness(route) == best for method in route.methods or ()}
        )


def _exactness(route: Route) -> int:
    return len(_PARAMETER.sub("", route.path_format))
