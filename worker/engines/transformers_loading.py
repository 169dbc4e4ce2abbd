"""Finding and loading a model folder or hub id: weights, tokenizer, what the card says of it. Weights are safetensors only.

No code of the model's own is ever run. Never here: generation.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatch.errors import PenstockError
from dispatch.reports import TokenizerFiles
from dispatch.settings import WorkerSettings
from worker import reservation
from worker.engines.naming import served_name

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "models" / "demo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_UNBOUNDED_TOKENS = 10**9  # tokenizers without a limit name an absurd one


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, with what its files say."""

    model: Any
    tokenizer: Any
    name: str
    files: TokenizerFiles
    context_tokens: int
    kv_bytes_per_token: int
    suggested: dict[str, float]
    """temperature, top_p, top_k, as far as the model's generation_config names them."""


def locate(settings: WorkerSettings) -> tuple[str, str]:
    """(what the library loads, the name it is served by): the demo, a folder, or a hub id."""
    place, name = _found(settings.model)
    return place, served_name(settings, name)


def _found(model: str) -> tuple[str, str]:
    if model == DEMO:
        return str(DEMO_FOLDER), DEMO
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise _bad_model(f"The folder {model!r} holds no model: it has no config.json.")
        return str(folder), folder.resolve().name
    if not _HUB_ID.fullmatch(model):
        raise _bad_model(f"There is no model folder {model!r}.")
    return model, model


def pick_device(wanted: str) -> Any:
    """The torch device a setting means."""
    import torch

    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise _bad_device(f"{wanted!r} is not a device.") from error
    if device.type not in ("cpu", "cuda"):
        raise _bad_device(f"{wanted!r} is not a device this engine uses.")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise _bad_device(f"{wanted!r} was asked for, but this process sees {count} CUDA devices.")
        device = torch.device("cuda", device.index or 0)
    return device


def load(settings: WorkerSettings, device: Any, tell: Callable[[str], None]) -> LoadedModel:
    """Load weights and tokenizer; blocks, minutes for a large model. `tell` hears how far it is."""
    place, name = locate(settings)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    dtype: Any = settings.dtype if settings.dtype != "auto" or device.type != "cpu" else torch.float32
    try:
        with _progress(tell):
            tell("reading the tokenizer")
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
            tell("reading the weights")
            model = AutoModelForCausalLM.from_pretrained(
                place, config=config, dtype=dtype, trust_remote_code=False, use_safetensors=True
            )
            if device.type != "cpu":
                tell(f"moving the weights to {device}")
                model = model.to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, MemoryError) as error:
        what = "cannot be loaded" if Path(place).is_dir() else "is no folder here, and as a hub id it cannot be loaded"
        raise _bad_model(f"The model {settings.model!r} {what}: {_first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise _bad_model(f"The model {settings.model!r} has no tokenizer.json.")
    text = model.config.get_text_config()
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        name=name,
        files=_files(model, tokenizer),
        context_tokens=_context_tokens(text, tokenizer),
        kv_bytes_per_token=_kv_bytes_per_token(text, model.dtype.itemsize),
        suggested=_suggested(model.generation_config),
    )


def available_ram_bytes() -> int:
    """Memory this machine could give us now, less what other workers were promised of it and have not filled yet."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = 2 * 1024**3
    return max(0, free - reservation.promised_elsewhere_bytes("host", (os.getpid(),)))


def _files(model: Any, tokenizer: Any) -> TokenizerFiles:
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = tokenizer.eos_token_id
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    return TokenizerFiles(
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        chat_template=template or "",
        special_tokens={key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)},
        eos_token_ids=tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (int(eos),),
    )


def _suggested(generation: Any) -> dict[str, float]:
    names = ("temperature", "top_p", "top_k")
    return {name: value for name in names if (value := getattr(generation, name, None)) is not None}


def _context_tokens(config: Any, tokenizer: Any) -> int:
    context = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(context) if context < _UNBOUNDED_TOKENS else 4096


def _kv_bytes_per_token(config: Any, dtype_bytes: int) -> int:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers * heads * head_dim * 2 * dtype_bytes)


@contextmanager
def _progress(tell: Callable[[str], None]) -> Iterator[None]:
    """While it is open, the library's progress bars are heard by `tell` instead of being drawn."""
    from transformers.utils import logging as library

    class Bar:
        def __init__(self, iterable: Any = None, desc: str = "", total: int | None = None, **_: Any) -> None:
            self._iterable = iterable
            self._what = (desc or "loading").lower()
            self._total = total if total is not None else len(iterable) if hasattr(iterable, "__len__") else 0
            self._seen = 0

        def __iter__(self) -> Iterator[Any]:
            for item in self._iterable:
                yield item
                self.update()

        def update(self, by: int = 1) -> None:
            self._seen += by
            if self._total:
                tell(f"{self._what}: {100 * self._seen // self._total} %")

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __getattr__(self, _: str) -> Callable[..., None]:
            return lambda *_args, **_kwargs: None

    before = library.set_tqdm_hook(lambda _factory, args, kwargs: Bar(*args, **kwargs))
    try:
        yield
    finally:
        library.set_tqdm_hook(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _bad_model(message: str) -> PenstockError:
    return PenstockError(
        "bad_setting",
        message,
        hint="Set worker.model to `demo`, to a folder made with save_pretrained (config.json, tokenizer.json, *.safetensors), "
        "or to a hub id this machine can fetch.",
        param="worker.model",
    )


def _bad_device(message: str) -> PenstockError:
    return PenstockError(
        "bad_setting", message, hint="Set worker.device to auto, cpu, cuda or cuda:N (see nvidia-smi).", param="worker.device"
    )
