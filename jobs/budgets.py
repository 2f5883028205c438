"""Budgets: how much a tenant may have and use. The names are those of the fields of `stockade:tenant:ID`."""

from typing import Annotated

from annotated_types import Ge, Le
from pydantic import Field, Strict

from policies.model import Frozen
from policies.units import SIZE_MAX, Size

_Count = Annotated[int, Strict(), Ge(0), Le(10**9)]
_Amount = Annotated[float, Ge(0), Le(SIZE_MAX)]


class Budgets(Frozen):
    """What is not set is not limited. Those of an organisation bound all of its projects together."""

    concurrent_jobs: _Count | None = Field(default=None, description="Jobs that are running, or about to.")
    queued_jobs: _Count | None = Field(default=None, description="Jobs that wait for their turn.")
    submits_per_minute: Annotated[int, Strict(), Ge(1), Le(10**9)] | None = Field(
        default=None, description="Jobs that are accepted within a minute."
    )
    cpu_seconds_per_hour: _Amount | None = Field(
        default=None, description="CPU time of all jobs that end within an hour of the clock, seconds."
    )
    cpu_seconds_per_day: _Amount | None = Field(
        default=None, description="CPU time of all jobs that end within a day (UTC), seconds."
    )
    memory_gb_seconds_per_hour: _Amount | None = Field(
        default=None,
        description="Memory limit in force (10^9 bytes) times wall time, of the jobs of an hour of the clock.",
    )
    memory_gb_seconds_per_day: _Amount | None = Field(default=None, description="The same for a day (UTC).")
    artifact_bytes: Size | None = Field(default=None, description="Bytes of all artifacts that are kept.")
