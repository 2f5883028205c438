"""The page about metrics, made from the measures: `python -m jobs.metrics_reference > docs/metrics.md`."""

import sys
from collections.abc import Iterable, Iterator

from jobs.measures import COUNTED, OBSERVED, PREFIX, Measure, bound_text

_HEAD = """\
# Metrics

Made from the measures by `python -m jobs.metrics_reference`; do not edit.

Every API process serves `/metrics` in the format of Prometheus, on a listener of its own:
`STOCKADE_METRICS`, by default `127.0.0.1:9464`; `off` for none. It asks for no key, so bind it where only
your monitoring reaches it. The listener that tenants reach has no such address.

One scrape of any API process tells about the whole installation: all processes add what they count to Redis
every four seconds. So scrape one of them, or one address in front of all; a sum over several would count
everything several times. A process that is killed loses its last seconds. When Redis loses its data, counters
begin at 0 again, as Prometheus expects of them.

No label holds the name or the id of a tenant, a job or a key. What each tenant used is in the usage export
(`GET /v1/usage`, `stockade usage`).

```yaml
scrape_configs:
  - job_name: stockade
    static_configs:
      - targets: ["127.0.0.1:9464"]
```
"""

_COUNTED = """\
## Counters and histograms

A histogram has the usual three series: `_bucket`, `_sum`, `_count`.
"""

_OBSERVED = """\
## Gauges

Looked up at each scrape.
"""


def reference() -> str:
    """Return the whole page."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield _HEAD
    yield _COUNTED
    yield from _table(COUNTED)
    yield "\n" + _OBSERVED
    yield from _table(OBSERVED)
    yield "\n## Buckets\n"
    for measure in COUNTED:
        if measure.buckets:
            yield f"- `{PREFIX}{measure.name}`: {', '.join(map(bound_text, measure.buckets))}"


def _table(measures: Iterable[Measure]) -> Iterator[str]:
    yield "| metric | kind | labels | meaning |"
    yield "|---|---|---|---|"
    for measure in measures:
        labels = ", ".join(f"`{label}`" for label in measure.labels)
        yield f"| `{PREFIX}{measure.name}` | {measure.kind} | {labels} | {measure.help} |"


if __name__ == "__main__":
    sys.stdout.write(reference())
