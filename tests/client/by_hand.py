"""A plan, carried out by a test: what it does is seen, and time passes only when the plan sleeps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from jobs.job_view import JobView
from jobs.spec import JobSpec
from policies.admission import admit
from policies.loader import load
from stockade.client.effect import Give, Giving, Next, Open, Plan, Send, Sleep, Work, given
from stockade.client.retry import Patience

Script = Callable[[httpx.Request, int], httpx.Response | Exception]


@dataclass
class ByHand:
    """Answers requests as the script says, by the request and its number; remembers requests and sleeps."""

    script: Script
    now: float = 0.0
    requests: list[httpx.Request] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def patience(self, seconds: float) -> Patience:
        """A patience that goes by the time here."""
        return Patience(seconds, lambda: self.now)

    def run(self, plan: Plan[Any]) -> Any:
        """The plan's result."""
        (result,) = self.told(given(plan))
        return result

    def told(self, plan: Giving[Any]) -> list[Any]:
        """The items that the plan hands out."""
        items: list[Any] = []
        resume: Callable[[], Any] = lambda: plan.send(None)  # noqa: E731
        while True:
            try:
                effect = resume()
            except StopIteration:
                return items
            if isinstance(effect, Give):
                items.append(effect.item)
            outcome = self._outcome(effect)
            if isinstance(outcome, Exception):
                resume = lambda failed=outcome: plan.throw(failed)  # noqa: E731
            else:
                resume = lambda came=outcome: plan.send(came)  # noqa: E731

    def _outcome(self, effect: Any) -> Any:
        match effect:
            case Send(asked) | Open(asked):
                url = f"http://service{asked.path}"
                request = httpx.Request(
                    asked.method,
                    url,
                    params=asked.query or None,
                    content=asked.body,
                    headers=list(asked.headers),
                )
                self.requests.append(request)
                answer = self.script(request, len(self.requests))
                if isinstance(answer, httpx.RequestError):
                    answer.request = request
                    return answer
                assert isinstance(answer, httpx.Response)
                answer.request = request
                self._chunks = answer.iter_bytes() if isinstance(effect, Open) else iter(())
                if isinstance(effect, Send):
                    answer.read()
                return answer
            case Next():
                try:
                    return next(self._chunks, None)
                except httpx.RequestError as error:
                    return error
            case Sleep(seconds):
                self.slept.append(seconds)
                self.now += seconds
            case Work(call):
                return call()
        return None


def problem(status: int, kind: str, detail: str = "because", **more: Any) -> httpx.Response:
    """A problem document as the API sends it."""
    headers = {"Retry-After": str(more.pop("retry_after"))} if "retry_after" in more else {}
    body = {"type": f"urn:stockade:problem:{kind}", "title": "No", "status": status, "detail": detail} | more
    return httpx.Response(status, json=body, headers=headers)


def job_view(state: str = "queued", **more: Any) -> dict[str, Any]:
    """A job as the API shows it."""
    admission = admit(JobSpec(command={"argv": ("true",)}), load().policies["default"])
    empty: dict[str, Any] = dict.fromkeys(JobView.model_fields)
    known = {"id": "job_1", "state": state, "attempt": 0, "created_at": "2026-01-01T00:00:00Z", "labels": {}}
    known |= {"pool": "default", "priority": "normal", "admission": admission}
    lists = {"steps": (), "artifacts": (), "artifact_errors": ()}
    return JobView(**empty | known | lists | more).model_dump(mode="json")
