"""A URL that can never be Redis's is refused before anything starts, wherever it was set, and never shown with its password."""

import pytest

from dispatch.configuration import load_settings
from dispatch.errors import PenstockError


@pytest.mark.parametrize(
    "url", ["foo", "http://127.0.0.1:6379", "redis://127.0.0.1:abc/0", "redis://127.0.0.1:99999/0", "redis://127.0.0.1:1/zero"]
)
def test_what_is_no_url_of_redis_is_refused(url: str) -> None:
    with pytest.raises(PenstockError, match=r"redis\.url") as refused:
        load_settings({"redis.url": url}, environment={})
    assert refused.value.code == "bad_setting"


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1", "rediss://u:p@host:6380/3", "unix:///run/redis.sock", "redis+sentinel://a:26379,b:26379/mymaster/0"],
)
def test_urls_of_redis_are_taken(url: str) -> None:
    assert load_settings({"redis.url": url}, environment={}).redis.url == url


def test_the_refusal_hides_the_password() -> None:
    with pytest.raises(PenstockError) as refused:
        load_settings({"redis.url": "redis://:topsecret@host:abc/0"}, environment={})
    assert "topsecret" not in str(refused.value)
