"""Traffic of many tenants at once: each hands in jobs, reads its own, and tries to read what others have."""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from jobs.job import Tenant

TRUE = {"command": ["true"]}
CLIENTS = 8
"""Threads that send; each speaks for its share of the tenants, over one connection."""


@dataclass
class Project:
    """A tenant of the load, and what it has seen."""

    tenant: Tenant
    key: str
    accepted: list[str] = field(default_factory=list)
    """Ids of its jobs."""
    refused: int = 0
    """How often a budget said no."""
    first: float = 0.0
    last: float = 0.0
    """When it handed in for the first and the last time."""

    @property
    def headers(self) -> dict[str, str]:
        """What its requests carry."""
        return {"Authorization": f"Bearer {self.key}"}


class Traffic:
    """Sends for a bounded time, and a bounded number of jobs; every answer is checked as it comes."""

    def __init__(self, url: str, projects: Sequence[Project], seconds: float, jobs: int) -> None:
        self._url = url
        self._projects = projects
        self._until = time.monotonic() + seconds
        self._left = jobs
        self._lock = threading.Lock()
        self._strangers: list[tuple[str, str]] = []
        """Project and id of every job that was accepted."""
        self._errors: list[BaseException] = []
        self.took: dict[str, list[float]] = defaultdict(list)
        """Seconds of every request, by what it was."""

    def run(self) -> None:
        """Send; raises what went wrong in any of the clients."""
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _client(self, number: int) -> None:
        chance = random.Random(number)
        mine = self._projects[number::CLIENTS]
        try:
            with httpx.Client(base_url=self._url, trust_env=False, timeout=60) as client:
                for project in mine:  # nobody is left out
                    self._submit(client, project)
                while time.monotonic() < self._until and self._left > 0 and not self._errors:
                    act = chance.choices((self._submit, self._read, self._pry, self._list), (5, 2, 2, 1))[0]
                    act(client, chance.choice(mine))
        except BaseException as error:
            self._errors.append(error)

    def _send(
        self, client: httpx.Client, what: str, method: str, path: str, project: Project, **sent: Any
    ) -> Any:
        begun = time.perf_counter()
        answer = client.request(method, path, headers=project.headers, **sent)
        with self._lock:
            self.took[what].append(time.perf_counter() - begun)
        return answer

    def _submit(self, client: httpx.Client, project: Project) -> None:
        answer = self._send(client, "submit", "POST", "/v1/jobs", project, json=TRUE)
        project.last = time.monotonic()
        project.first = project.first or project.last
        if answer.status_code == 429:
            assert answer.json()["type"] == "urn:stockade:problem:over-budget", answer.text
            assert int(answer.headers["retry-after"]) >= 1
            project.refused += 1
            return
        assert answer.status_code == 201, answer.text
        job_id = answer.json()["id"]
        project.accepted.append(job_id)
        with self._lock:
            self._strangers.append((project.tenant.id, job_id))
            self._left -= 1

    def _read(self, client: httpx.Client, project: Project) -> None:
        if project.accepted:
            job_id = project.accepted[-1]
            answer = self._send(client, "read", "GET", f"/v1/jobs/{job_id}", project)
            assert (answer.status_code, answer.json()["id"]) == (200, job_id), answer.text

    def _pry(self, client: httpx.Client, project: Project) -> None:
        owner, job_id = self._strangers[len(project.accepted) % len(self._strangers)]
        if owner != project.tenant.id:
            answer = self._send(client, "read another's", "GET", f"/v1/jobs/{job_id}", project)
            assert answer.status_code == 404, answer.text

    def _list(self, client: httpx.Client, project: Project) -> None:
        answer = self._send(client, "list", "GET", "/v1/jobs", project)
        assert answer.status_code == 200, answer.text
        assert {each["id"] for each in answer.json()["jobs"]} <= set(project.accepted)
