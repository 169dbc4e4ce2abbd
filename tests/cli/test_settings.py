"""Settings: flag > environment > .env > penstock.toml > default; unknown keys and bad values are told, secrets are not."""

from pathlib import Path

import pytest

from autoscaler.launchers.local import role_environment
from dispatch.configuration import Origin, as_environment, leaves, load, load_settings, secrets_of, shown, variable
from dispatch.errors import PenstockError
from dispatch.settings import Settings


def refused(flags: dict[str, object], environment: dict[str, str], folder: Path) -> PenstockError:
    with pytest.raises(PenstockError) as caught:
        load_settings(flags, environment=environment, folder=folder)
    assert caught.value.code == "bad_setting"
    return caught.value


def test_each_layer_beats_the_one_below(tmp_path: Path) -> None:
    port = "gateway.port"
    layers: list[tuple[int, str]] = []

    def look(flags: dict[str, object], environment: dict[str, str]) -> None:
        loaded = load(flags, environment=environment, folder=tmp_path)
        layers.append((loaded.settings.gateway.port, loaded.origins[port].layer))

    look({}, {})
    (tmp_path / "penstock.toml").write_text("[gateway]\nport = 1001\n")
    look({}, {})
    (tmp_path / ".env").write_text("PENSTOCK_GATEWAY__PORT=1002\nSOMETHING_ELSE=1\n")
    look({}, {})
    look({}, {"PORT": "1003"})
    look({}, {"PORT": "1003", "PENSTOCK_GATEWAY__PORT": "1004"})
    look({port: "1005"}, {"PENSTOCK_GATEWAY__PORT": "1004"})
    assert layers == [
        (8000, "default"),
        (1001, "penstock.toml"),
        (1002, ".env"),
        (1003, "environment"),
        (1004, "environment"),
        (1005, "flag"),
    ]


def test_layers_merge_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text('[gateway]\nport = 1001\nhost = "127.0.0.2"\n')
    settings = load_settings({"gateway.port": "7"}, environment={}, folder=tmp_path)
    assert (settings.gateway.host, settings.gateway.port) == ("127.0.0.2", 7)


def test_a_flag_not_given_is_no_flag(tmp_path: Path) -> None:
    assert load_settings({"gateway.port": None}, environment={"PORT": "9"}, folder=tmp_path).gateway.port == 9


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    loaded = load({}, environment={"PENSTOCK_API_KEYS": "", "PENSTOCK_GATEWAY__PORT": ""}, folder=tmp_path)
    assert loaded.settings == Settings()


def test_api_keys_are_comma_separated(tmp_path: Path) -> None:
    keys = load_settings({}, environment={"PENSTOCK_API_KEYS": "first-key, second-key,"}, folder=tmp_path).api_keys
    assert [key.get_secret_value() for key in keys] == ["first-key", "second-key"]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (",", "shorter than 8"),
        ("first-key,hunter2", "key 2 is shorter than 8"),
        ("hunter22\xe9", "printable ASCII"),
        ("hunter 22", "printable ASCII"),
        ("hunter22\x00", "printable ASCII"),
    ],
)
def test_a_key_that_guards_nothing_or_cannot_be_sent_is_refused_unshown(keys: str, why: str, tmp_path: Path) -> None:
    error = refused({}, {"PENSTOCK_API_KEYS": keys}, tmp_path)
    assert (error.param, why in error.message, "hunter" in str(error)) == ("api_keys", True, False)


def test_an_empty_file_of_keys_does_not_open_the_gateway(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n")
    assert refused({}, {"PENSTOCK_API_KEYS_FILE": str(tmp_path / "keys")}, tmp_path).param == "api_keys"
    (tmp_path / "penstock.toml").write_text('api_keys = ["", "hunter22"]\n')
    assert refused({}, {}, tmp_path).param == "api_keys"


@pytest.mark.parametrize("name", ["my model", "mod\xe8le", "{s0}", "x" * 129, "/models/x"])
def test_a_name_that_no_client_could_use_is_refused(name: str, tmp_path: Path) -> None:
    error = refused({"worker.served_name": name}, {}, tmp_path)
    assert error.param == "worker.served_name"
    assert "letters, digits" in error.message


@pytest.mark.parametrize(("name", "key"), [("REDIS_URL", "redis.url"), ("LOG_LEVEL", "log.level"), ("PORT", "gateway.port")])
def test_names_of_other_tools_are_taken(name: str, key: str, tmp_path: Path) -> None:
    value = {"REDIS_URL": "redis://elsewhere:1/0", "LOG_LEVEL": "WARNING", "PORT": "81"}[name]
    assert load({}, environment={name: value}, folder=tmp_path).origins[key] == Origin("environment", name)


@pytest.mark.parametrize(
    ("environment", "suggestion"),
    [
        ({"PENSTOCK_GATWAY__PORT": "1"}, "PENSTOCK_GATEWAY__PORT"),
        ({"PENSTOCK_PORT": "1"}, "PENSTOCK_GATEWAY__PORT"),
        ({"PENSTOCK_WORKER__MODLE": "x"}, "PENSTOCK_WORKER__MODEL"),
        ({"PENSTOCK_LOG__LVL": "x"}, "PENSTOCK_LOG__LEVEL"),
    ],
)
def test_an_unknown_variable_gets_a_suggestion(environment: dict[str, str], suggestion: str, tmp_path: Path) -> None:
    error = refused({}, environment, tmp_path)
    assert next(iter(environment)) in error.message
    assert suggestion in error.hint


def test_an_unknown_key_of_the_file_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text("[worker]\nengin = 'sim'\n")
    error = refused({}, {}, tmp_path)
    assert "worker.engin" in error.message
    assert "penstock.toml" in error.message
    assert "worker.engine" in error.hint


def test_an_unknown_section_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text("[gatewy]\nport = 1\n")
    assert "gateway" in refused({}, {}, tmp_path).hint


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text("[gateway\n")
    error = refused({}, {}, tmp_path)
    assert "penstock.toml" in error.message
    assert "line 1" in error.message


@pytest.mark.parametrize(
    ("flags", "environment", "parts"),
    [
        ({"gateway.port": "70000"}, {}, ["gateway.port", "70000", "flag", "65535"]),
        ({}, {"PENSTOCK_GATEWAY__PORT": "x"}, ["gateway.port", "'x'", "environment PENSTOCK_GATEWAY__PORT", "integer"]),
        ({}, {"PENSTOCK_WORKER__ENGINE": "vllm"}, ["worker.engine", "vllm", "transformers", "sim", "upstream"]),
        ({}, {"LOG_LEVEL": "loud"}, ["log.level", "loud", "environment LOG_LEVEL"]),
    ],
)
def test_a_bad_value_is_told_with_key_value_and_origin(
    flags: dict[str, object], environment: dict[str, str], parts: list[str], tmp_path: Path
) -> None:
    error = refused(flags, environment, tmp_path)
    assert [part for part in parts if part not in error.message] == []
    assert error.hint


def test_secrets_from_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter22\n")
    environment = {"PENSTOCK_REDIS__PASSWORD_FILE": str(tmp_path / "secret"), "PENSTOCK_REDIS__URL": "redis://host:1/0"}
    settings = load_settings({}, environment=environment, folder=tmp_path)
    assert settings.redis.url == "redis://:hunter22@host:1/0"


def test_api_keys_from_a_file_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("first-key\nsecond-key\n")
    keys = load_settings({}, environment={"PENSTOCK_API_KEYS_FILE": str(tmp_path / "keys")}, folder=tmp_path).api_keys
    assert [key.get_secret_value() for key in keys] == ["first-key", "second-key"]


def test_a_secret_twice_is_refused_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter22\n")
    environment = {"PENSTOCK_REDIS__PASSWORD_FILE": str(tmp_path / "secret"), "PENSTOCK_REDIS__PASSWORD": "hunter23"}
    error = refused({}, environment, tmp_path)
    assert "hunter" not in str(error)


def test_a_missing_secret_file_is_named(tmp_path: Path) -> None:
    error = refused({}, {"PENSTOCK_API_KEYS_FILE": str(tmp_path / "nothing")}, tmp_path)
    assert "PENSTOCK_API_KEYS_FILE" in error.message
    assert "No such file" in error.message


def test_a_misspelt_secret_is_not_repeated(tmp_path: Path) -> None:
    assert "hunter22" not in str(refused({}, {"PENSTOCK_REDIS__PASWORD": "hunter22"}, tmp_path))


def test_a_password_is_quoted_into_the_url_and_an_own_one_stays(tmp_path: Path) -> None:
    environment = {"PENSTOCK_REDIS__PASSWORD": "p@ss/word"}
    settings = load_settings({"redis.url": "rediss://user@host:1/2"}, environment=environment, folder=tmp_path)
    assert settings.redis.url == "rediss://user:p%40ss%2Fword@host:1/2"
    settings = load_settings({"redis.url": "redis://:own@host:1/2"}, environment=environment, folder=tmp_path)
    assert settings.redis.url == "redis://:own@host:1/2"


def test_what_is_shown_hides_secrets() -> None:
    assert shown("redis.url", "redis://:pw@host:1/0") == "redis://:***@host:1/0"
    assert shown("redis.url", "redis://host:1/0") == "redis://host:1/0"
    assert shown("redis.password", "pw") == "***"
    assert shown("api_keys", ("a", "b")) == ["***", "***"]


def test_a_child_loads_exactly_what_its_parent_has(tmp_path: Path) -> None:
    """`up` hands its settings down by the environment: nothing may be lost or changed on the way."""
    flags = {"worker.sim_speed": "inf", "worker.kv_tokens": "4096", "redis.url": "redis://:p%40ss@host:1/0", "data_dir": "/x y"}
    settings = load_settings(flags, environment={"PENSTOCK_API_KEYS": "first-key,second-key"}, folder=tmp_path)
    (tmp_path / "penstock.toml").write_text("[gateway]\nport = 1\n")
    (tmp_path / ".env").write_text("PENSTOCK_WORKER__MODEL=other\n")
    assert load_settings({}, environment=as_environment(settings), folder=tmp_path) == settings


def test_every_secret_is_known_to_the_mask(tmp_path: Path) -> None:
    environment = {
        "PENSTOCK_API_KEYS": "key-no-1,key-no-2",
        "PENSTOCK_WORKER__UPSTREAM_API_KEY": "key-up",
        "REDIS_URL": "redis://:p%40ss@h:1",
    }
    assert set(secrets_of(load_settings({}, environment=environment, folder=tmp_path))) == {
        "key-no-1",
        "key-no-2",
        "key-up",
        "p%40ss",
        "p@ss",
    }


def test_every_setting_has_a_description_and_a_variable() -> None:
    assert [key for key, field in leaves(Settings) if not field.description] == []
    assert variable("redis.url") == "PENSTOCK_REDIS__URL"


def test_strategies_come_from_every_layer_and_go_to_a_child(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text('[queue]\nstrategy = "round_robin"\n[queue.strategies]\n"org/m:1" = "session"\n')
    queue = load_settings({}, environment={}, folder=tmp_path).queue
    assert [queue.strategy_of(model) for model in ("demo", "org/m:1")] == ["round_robin", "session"]
    given = {"PENSTOCK_QUEUE__STRATEGIES": "demo=least_loaded, org/m:1=pull\n"}
    settings = load_settings({}, environment=given, folder=tmp_path)
    assert [settings.queue.strategy_of(model) for model in ("demo", "org/m:1", "x")] == ["least_loaded", "pull", "round_robin"]
    (tmp_path / "child").mkdir()
    assert load_settings({}, environment=as_environment(settings), folder=tmp_path / "child").queue == settings.queue
    assert shown("queue.strategies", settings.queue.strategies) == {"demo": "least_loaded", "org/m:1": "pull"}
    assert load_settings({}, environment={}, folder=tmp_path / "child").queue.strategy_of("demo") == "pull"


@pytest.mark.parametrize(
    ("toml", "environment", "parts"),
    [
        ("", {"PENSTOCK_QUEUE__STRATEGY": "astrology"}, ["queue.strategy = 'astrology'", "'pull'", "'session'"]),
        ("", {"PENSTOCK_QUEUE__STRATEGIES": "Demo=astrology"}, ["for 'Demo', 'astrology' is none of pull, ", "session"]),
        ("", {"PENSTOCK_QUEUE__STRATEGIES": "demo"}, ["for 'demo', '' is none of pull"]),
        ("", {"PENSTOCK_QUEUE__STRATEGIES": "a{b}=pull"}, ["'a{b}' can be no model's name", "use letters"]),
        ('[queue]\nstrategies = "pull"\n', {}, ["queue.strategies = 'pull'", "model=strategy"]),
    ],
)
def test_a_strategy_that_is_none_is_told_with_the_choices(
    toml: str, environment: dict[str, str], parts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "penstock.toml").write_text(toml)
    error = refused({}, environment, tmp_path)
    assert error.param in ("queue.strategy", "queue.strategies")
    assert [part for part in parts if part not in error.message] == []


def test_a_folder_for_start_locks_is_no_setting_and_is_passed_on(tmp_path: Path) -> None:
    around = {"PENSTOCK_RUNTIME_DIR": "/run/locks", "PENSTOCK_WORKER__ENGINE": "sim", "HOME": "/h"}
    settings = load_settings({}, environment=around, folder=tmp_path)
    passed = role_environment(around, settings)
    assert passed["PENSTOCK_RUNTIME_DIR"] == "/run/locks"
    assert load_settings({}, environment=passed, folder=tmp_path) == settings


def test_a_short_secret_of_the_bell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PenstockError, match="shorter than 16 characters") as refused:
        load({}, environment={"PENSTOCK_AGENT__SECRET": "fifteen-letters"}, folder=tmp_path)
    assert "fifteen-letters" not in str(refused.value)
    loaded = load({}, environment={"PENSTOCK_AGENT__SECRET": "sixteen--letters"}, folder=tmp_path).settings
    assert loaded.agent.secret is not None
    assert load({}, environment={"PENSTOCK_AGENT__SECRET": ""}, folder=tmp_path).settings.agent.secret is None, "not set"
