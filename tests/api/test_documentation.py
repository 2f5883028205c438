"""/docs and /openapi.json."""

import re

import httpx


def test_the_reference_works_without_internet(stranger: httpx.Client) -> None:
    """Everything that /docs loads comes from this service, and its policy allows nothing else."""
    page = stranger.get("/docs")
    assert page.status_code == 200
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        assert link.startswith("/docs/assets/")
        assert stranger.get(link).status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "https:" not in page.headers["content-security-policy"]


def test_the_reference_reads_the_description(stranger: httpx.Client) -> None:
    """The page names /openapi.json, which is there for everybody."""
    assert '"/openapi.json"' in stranger.get("/docs").text
    assert stranger.get("/openapi.json").json()["openapi"].startswith("3.1")


def test_there_is_one_reference(stranger: httpx.Client) -> None:
    """FastAPI's own pages, which load scripts from elsewhere, are off."""
    for path in ("/redoc", "/docs/oauth2-redirect", "/docs/assets/../../auth.py", "/docs/assets/nothing"):
        assert stranger.get(path).status_code == 404
