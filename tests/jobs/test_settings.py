"""Settings: from the environment, checked at once, without secrets in what is shown."""

from pathlib import Path

import pytest

from jobs.settings import Settings, SettingsError


def test_without_variables_the_defaults_hold() -> None:
    """An empty environment is a valid one; an empty variable counts as not set."""
    settings = Settings.from_env({})
    assert settings == Settings.from_env({"STOCKADE_SLOTS": "", "HOME": "/root"})
    assert (settings.host, settings.port, settings.image_host) == ("127.0.0.1", 8000, True)
    assert settings.slots >= 2


def test_variables_are_read() -> None:
    """Each setting has its variable."""
    settings = Settings.from_env(
        {
            "STOCKADE_REDIS": "redis://h:1/2",
            "STOCKADE_STATE": "/s",
            "STOCKADE_LAUNCHER": "/l.sock",
            "STOCKADE_LISTEN": "[::1]:80",
            "STOCKADE_POLICIES": "/p",
            "STOCKADE_SLOTS": "3",
            "STOCKADE_IMAGE_HOST": "off",
        }
    )
    assert (settings.redis, settings.state, settings.launcher) == (
        "redis://h:1/2",
        Path("/s"),
        Path("/l.sock"),
    )
    assert (settings.host, settings.port) == ("::1", 80)
    assert (settings.policies, settings.slots, settings.image_host) == (Path("/p"), 3, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("REDIS", url) for url in ("localhost:6379", "http://h", "unix://relative", "redis+socket://x")],
        *[("LISTEN", address) for address in ("8000", ":8000", "h:", "h:x", "h:70000", "h:-1", "h:١")],  # noqa: RUF001
        *[("METRICS", address) for address in ("9464", "on", "h:70000")],
        *[("SLOTS", slots) for slots in ("0", "-1", "x", "1.5", "5000")],
        ("IMAGE_HOST", "maybe"),
        *[("WEBHOOK_ALLOW", networks) for networks in ("x", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/8;::/0")],
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    """A setting that cannot be used stops the process with the variable's name."""
    with pytest.raises(SettingsError, match=f"STOCKADE_{name}: "):
        Settings.from_env({f"STOCKADE_{name}": value})


def test_the_password_of_redis_is_never_shown() -> None:
    """Neither repr nor the form for logs nor an error has it."""
    settings = Settings.from_env({"STOCKADE_REDIS": "rediss://user:hunter2@h:1/2?password=hunter2"})
    assert settings.redis_shown == "rediss://h:1/2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)
    for wrong in ("http://user:hunter2@h", "redis://:hunter2/x@h", "redis://:hunter2@\N{CARE OF}"):
        with pytest.raises(SettingsError) as caught:
            Settings.from_env({"STOCKADE_REDIS": wrong})
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "redis_py", "celery"),
    [
        ("redis://h:1/2", "redis://h:1/2", "redis://h:1/2"),
        ("unix:///a/b", "unix:///a/b", "redis+socket:///a/b"),
        ("unix:///a/b?db=3", "unix:///a/b?db=3", "redis+socket:///a/b?virtual_host=3"),
        ("redis+socket:///a/b?virtual_host=3", "unix:///a/b?db=3", "redis+socket:///a/b?virtual_host=3"),
    ],
)
def test_each_client_gets_its_own_dialect(url: str, redis_py: str, celery: str) -> None:
    """One setting serves redis-py and Celery, who write a socket's address differently."""
    settings = Settings.from_env({"STOCKADE_REDIS": url})
    assert (settings.redis_py, settings.redis_celery) == (redis_py, celery)


def test_metrics_have_an_address_or_none() -> None:
    """On this machine only, unless the setting says otherwise; `off` is none."""
    assert Settings.from_env({}).metrics_address == ("127.0.0.1", 9464)
    assert Settings.from_env({"STOCKADE_METRICS": "[::]:1"}).metrics_address == ("::", 1)
    assert Settings.from_env({"STOCKADE_METRICS": "off"}).metrics_address is None


def test_a_child_process_gets_the_same_settings() -> None:
    """The variables made of settings make those settings again."""
    settings = Settings.from_env(
        {"STOCKADE_IMAGE_HOST": "off", "STOCKADE_METRICS": "off", "STOCKADE_REDIS": "unix:///r?db=1"}
    )
    assert Settings.from_env(settings.environment()) == settings


def test_networks_are_read_and_handed_on() -> None:
    """The networks that webhooks may reach are a list with commas; none by default."""
    assert Settings.from_env({}).webhook_networks == ()
    settings = Settings.from_env({"STOCKADE_WEBHOOK_ALLOW": " 10.1.0.0/16, fd00:1::/64 ,127.0.0.1"})
    assert [str(each) for each in settings.webhook_networks] == ["10.1.0.0/16", "fd00:1::/64", "127.0.0.1/32"]
    assert Settings.from_env(settings.environment()) == settings
