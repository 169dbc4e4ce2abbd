"""Where settings come from: flag > environment > .env > penstock.toml > default, merged key by key with their origins.

Never here: which settings exist and what they mean (settings.py, settings_scale.py).
"""

import difflib
import json
import os
import re
import tomllib
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from dispatch.errors import PenstockError
from dispatch.settings import Settings

PREFIX = "PENSTOCK_"
CONFIG_FILE = "penstock.toml"
MASK = "***"

_PASSWORD_IN_QUERY = re.compile(r"([?&]\w*password=)[^&\s]*")

# Of the machine, not of a role: a folder for start locks. Whoever starts a worker passes it on.
OF_THE_MACHINE = frozenset({"PENSTOCK_RUNTIME_DIR"})
# Read by the client verbs, by processes.py and by worker/reservation.py: in the same environment, and no settings.
NOT_SETTINGS = frozenset({"PENSTOCK_SERVER", "PENSTOCK_API_KEY", "PENSTOCK_PARENT_PID"}) | OF_THE_MACHINE

# Names that other tools and platforms set; any PENSTOCK_ name beats them.
FOREIGN_NAMES: Mapping[str, str] = {"REDIS_URL": "redis.url", "LOG_LEVEL": "log.level", "PORT": "gateway.port"}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one value came from: the layer, and the name it had there."""

    layer: Literal["flag", "environment", ".env", "penstock.toml", "default"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.layer} {self.name}".strip()


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and the origin of each by its dotted key."""

    settings: Settings
    origins: Mapping[str, Origin]


@dataclass(frozen=True, slots=True)
class _Value:
    value: Any
    origin: Origin


def load_settings(
    flags: Mapping[str, Any], *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Settings:
    """The settings of this process. `flags` are dotted keys (`gateway.port`); None means not given."""
    return load(flags, environment=environment, folder=folder).settings


def load(flags: Mapping[str, Any], *, environment: Mapping[str, str] | None = None, folder: Path | None = None) -> Loaded:
    """The same with origins. Raises PenstockError("bad_setting") for an unknown key or a value that is not valid."""
    environment = os.environ if environment is None else environment
    folder = Path.cwd() if folder is None else folder
    fields = dict(leaves(Settings))
    merged: dict[str, _Value] = {}
    for layer in (
        _from_toml(folder / CONFIG_FILE, fields),
        _from_variables(_read_dotenv(folder / ".env"), ".env", fields),
        _from_variables(environment, "environment", fields),
        {key: _Value(value, Origin("flag")) for key, value in flags.items() if value is not None},
    ):
        merged.update(layer)
    settings = _validate(merged, fields)
    origins = {key: merged[key].origin if key in merged else Origin("default") for key in fields}
    return Loaded(_with_password_in_url(settings), origins)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting by its dotted key."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that gets settings of its own: without all of ours, but for what the machine says."""
    return {name: value for name, value in environment.items() if not name.startswith("PENSTOCK_") or name in OF_THE_MACHINE}


def variable(key: str) -> str:
    """The environment's name of a setting."""
    return PREFIX + key.upper().replace(".", "__")


def as_environment(settings: Settings) -> dict[str, str]:
    """The settings as variables for a child process, secrets included: it will load exactly these."""
    result = {}
    for key, _ in leaves(Settings):
        value = _reveal(value_of(settings, key))
        if value is not None:
            result[variable(key)] = _as_text(value)
    return result


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        if any(isinstance(part, BaseModel) for part in value.values()):
            return json.dumps({name: part.model_dump(mode="json", exclude_unset=True) for name, part in value.items()})
        return ",".join(f"{name}={part}" for name, part in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def value_of(settings: Settings, key: str) -> Any:
    """One setting by its dotted key."""
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def shown(key: str, value: Any) -> Any:
    """A value fit for eyes: secrets masked, passwords in URLs too. JSON-ready."""
    value = _reveal(value)
    if value is None:
        return None
    if _is_secret(key):
        return MASK if not isinstance(value, (list, tuple)) else [MASK] * len(value)
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, Mapping):
        return {
            name: part.model_dump(mode="json", exclude_unset=True) if isinstance(part, BaseModel) else str(part)
            for name, part in value.items()
        }
    return str(value) if isinstance(value, Path) else value


def mask_url(text: str) -> str:
    """The text with the passwords of a URL masked."""
    text = _PASSWORD_IN_QUERY.sub(rf"\1{MASK}", text)
    scheme, separator, rest = text.partition("://")
    userinfo, at, host = rest.rpartition("@")
    if not separator or not at:
        return text
    return f"{scheme}://{userinfo.partition(':')[0]}:{MASK}@{host}" if ":" in userinfo else f"{scheme}://{MASK}@{host}"


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Every secret value, for the log's masking filter."""
    found: list[str] = []
    for key, _ in leaves(Settings):
        if _is_secret(key):
            value = _reveal(value_of(settings, key))
            found.extend(value if isinstance(value, tuple) else [value] if value else [])
    if settings.redis.url and (password := urllib.parse.urlsplit(settings.redis.url).password):
        found.append(password)
        found.append(urllib.parse.unquote(password))
    if settings.redis.url:
        query = urllib.parse.urlsplit(settings.redis.url).query
        found += [value for name, value in urllib.parse.parse_qsl(query) if name.endswith("password")]
    return tuple(dict.fromkeys(found))


# ---- the layers


def _from_toml(path: Path, fields: Mapping[str, FieldInfo]) -> dict[str, _Value]:
    if not path.is_file():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PenstockError("bad_setting", f"{path} is not valid TOML: {error}.", hint="Mend the line it names.") from error
    except OSError as error:
        raise PenstockError("bad_setting", f"{path} cannot be read: {error.strerror}.", hint="Make it readable.") from error
    found: dict[str, _Value] = {}
    _flatten(document, "", path, fields, found)
    return found


def _flatten(table: Mapping[str, Any], prefix: str, path: Path, fields: Mapping[str, FieldInfo], into: dict[str, _Value]) -> None:
    sections = {key.rpartition(".")[0] for key in fields} - {""}
    for name, value in table.items():
        key = prefix + name
        origin = Origin("penstock.toml", key)
        if key in sections:
            if not isinstance(value, dict):
                raise _bad(key, value, origin, "it is a section, not a value", hint=f"Write [{key}] and its keys below.")
            _flatten(value, key + ".", path, fields, into)
        elif key in fields:
            into[key] = _Value(value, origin)
        else:
            known = [*fields, *sections]
            # A table would be shown whole, and may hold a misplaced secret.
            raise _unknown(key, MASK if isinstance(value, dict) else value, origin, key, known)


def _read_dotenv(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values  # a tenth of a millisecond only where there is a .env

    return {name: value for name, value in dotenv_values(path, interpolate=False).items() if value is not None}


def _from_variables(
    variables: Mapping[str, str], layer: Literal["environment", ".env"], fields: Mapping[str, FieldInfo]
) -> dict[str, _Value]:
    keys = {variable(key): key for key in fields}
    files = {f"{variable(key)}_FILE": key for key in fields if _is_secret(key)}
    found: dict[str, _Value] = {}
    for name, key in FOREIGN_NAMES.items():
        if variables.get(name):
            found[key] = _Value(_from_text(fields[key], variables[name]), Origin(layer, name))
    for name, value in variables.items():
        # An empty variable means "not set": compose files and CI pass `${NAME:-}` on.
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or not value:
            continue
        origin = Origin(layer, name)
        if name in keys:
            found[keys[name]] = _Value(_from_text(fields[keys[name]], value), origin)
        elif name in files:
            if variables.get(variable(files[name])):
                raise _bad(files[name], MASK, origin, f"{variable(files[name])} is set too", hint="Keep one of the two.")
            found[files[name]] = _Value(_from_text(fields[files[name]], _read_secret(name, value, origin)), origin)
        else:
            raise _unknown(name, value, origin, name, [*keys, *files, "PENSTOCK_SERVER", "PENSTOCK_API_KEY"])
    return found


def _read_secret(name: str, path: str, origin: Origin) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise _bad(name, path, origin, f"the file cannot be read ({why})", hint="Name a readable file.") from error


def _from_text(field: FieldInfo, text: str) -> Any:
    """What a text means for a field: lists and name=value pairs are split at commas and lines, words of a choice are taken in
    any case."""
    if get_origin(field.annotation) is Mapping and text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    if get_origin(field.annotation) is Mapping:
        pairs = [part.partition("=") for part in re.split(r"[,\n]", text) if part.strip()]
        return {name.strip(): value.strip() for name, _, value in pairs}
    if get_origin(field.annotation) is tuple:
        # Something was given: nothing but separators (an empty file) must not read as "no keys, open to all".
        return tuple(part.strip() for part in re.split(r"[,\n]", text) if part.strip()) or ("",)
    if get_origin(field.annotation) is Literal and text.lower() in get_args(field.annotation):
        return text.lower()
    return text


# ---- checking


def _validate(merged: Mapping[str, _Value], fields: Mapping[str, FieldInfo]) -> Settings:
    document: dict[str, Any] = {}
    for key, held in merged.items():
        if key not in fields:
            raise _unknown(key, held.value, held.origin, key, list(fields))
        *sections, name = key.split(".")
        table = document
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = held.value
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = next(k for k in fields if _is_at(first["loc"], k))
        message = first["msg"].removeprefix("Value error, ")
        why = message[:1].lower() + message[1:]
        raise _bad(key, merged[key].value, merged[key].origin, why, hint=f"{key}: {fields[key].description}.") from None


def _is_at(location: tuple[int | str, ...], key: str) -> bool:
    parts = key.split(".")
    return list(location[: len(parts)]) == parts


def _with_password_in_url(settings: Settings) -> Settings:
    """Every reader needs only `redis.url`: a password that stands apart is put into it."""
    url, password = settings.redis.url, settings.redis.password
    if not url or password is None:
        return settings
    parts = urllib.parse.urlsplit(url)
    if parts.password:
        return settings
    quoted = urllib.parse.quote(password.get_secret_value(), safe="")
    netloc = f"{parts.username or ''}:{quoted}@{parts.netloc.rpartition('@')[2]}"
    full = urllib.parse.urlunsplit(parts._replace(netloc=netloc))
    return settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": full})})


def _bad(key: str, value: Any, origin: Origin, why: str, *, hint: str) -> PenstockError:
    text = f"{key} = {shown(key, value)!r} (from {origin}) is not valid: {why}."
    return PenstockError("bad_setting", text, hint=hint, param=key)


def _unknown(name: str, value: Any, origin: Origin, near: str, known: list[str]) -> PenstockError:
    # A right name in the wrong section is far by letters and near by sense.
    last = _last_part(near)
    close = [k for k in known if _last_part(k) == last] or difflib.get_close_matches(near, known, n=1, cutoff=0.6)
    # An unknown name may well be a misspelled secret: its value is not repeated unless it is plainly a number or a switch.
    plain = isinstance(value, (int, float)) or str(value).replace(".", "", 1).isdigit()
    text = f"{name} = {value if plain else MASK!s} (from {origin}) is no setting of Penstock."
    hint = f"Did you mean {close[0]}?" if close else "`penstock config show` lists all settings."
    return PenstockError("bad_setting", text, hint=hint, param=name)


def _last_part(name: str) -> str:
    return name.removeprefix(PREFIX).lower().replace("__", ".").rpartition(".")[2]


def _is_secret(key: str) -> bool:
    name = key.lower().replace("__", ".")
    return any(word in name for word in ("password", "api_key", "secret"))


def _reveal(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return tuple(_reveal(part) for part in value)
    return value
