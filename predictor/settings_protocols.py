"""The settings of the protocols: which routes are served, and in which shapes they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from predictor.errors import ConfigurationError
from predictor.settings_types import Adapters, Bytes, Names


class ProtocolSettings(BaseSettings):
    """Routes and shapes of requests and replies."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    openai_route_prefix: str = Field("/openai", pattern=r"^(/[\w.~-]+)*$")
    """The path before OpenAI's routes, such as `/openai/v1/completions`. They are served without
    one as well, as `/v1/completions`. KServe's `KSERVE_OPENAI_ROUTE_PREFIX` sets it too."""

    return_probabilities: bool = False
    """Whether classification returns the probabilities of all labels."""

    return_raw_logits: bool = False
    """Whether classification returns the logits of all labels."""

    return_offsets_mapping: bool = False
    """Whether token classification returns the label and offsets of every token in place of
    entities."""

    model_aliases: Names = ()
    """Further names of the model, separated by commas, which may have slashes: OpenAI's clients may
    use them as `model`."""

    lora_modules: Adapters = Field(default_factory=dict)
    """LoRA adapters in the format of PEFT, as `name=path` pairs with commas or spaces between them,
    or as JSON. A path is a directory or, if there is none, a repository on the hub such as
    `owner/name@revision`. A request picks an adapter by its name in place of the model's. They stay
    in memory, and rows with different ones share forward passes."""

    lora_memory: Bytes = 0
    """Memory for adapters that are loaded while the model serves, by vLLM's routes
    `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, which there are only with it. It is part
    of the plan. Whoever may use the routes can read any directory with an adapter that the pod can
    read: set API keys too. After a restart these adapters have to be loaded again."""

    truncate: bool = False
    """Whether a text that is longer than `max_model_len` is cut, in the tasks other than
    generation. A request may say otherwise by its parameter `truncate`."""

    disable_special_tokens: bool = False
    """Whether texts are tokenised without the tokenizer's special tokens, in classification,
    embedding and fill-mask. Most models were trained with them."""

    enable_load_unload: bool = False
    """Whether KServe's unauthenticated route that unloads the model is served. An unloaded model
    stays unloaded until the process restarts."""

    torchserve_api: bool = False
    """Whether TorchServe's routes are served too: `/predictions`, `/ping` and, read-only,
    `/models`."""

    tgi_api: bool = False
    """Whether Text Generation Inference's routes are served too: `/generate`, `/generate_stream`,
    `POST /` and `/info`."""

    vllm_metrics: bool = False
    """Whether `/metrics` has vLLM's names besides ours (`vllm:num_requests_waiting` and others)."""

    kserve_semantics: bool = False
    """Whether V1 and V2 answer encoder tasks as KServe's Hugging Face server: class indices in
    place of labels, the best token of a mask, vectors, and V2's one output `output-0`."""

    torchserve_semantics: bool = False
    """Whether V1, V2 and `/predictions` use the defaults of TorchServe's handler. The prompt is cut
    at `max_length` tokens, as many new tokens are sampled with `top_p` 0.95 and `top_k` 60, and the
    reply repeats the prompt. V1's predictions are strings then."""

    api_key: Names = Field((), exclude=True, repr=False)
    """API keys, separated by commas. Requests need one of them (`Authorization: Bearer KEY`),
    except for probes and `/metrics`. Processes can be listed with their flags, so set it in the
    environment (`PREDICTOR_API_KEY`) or use `api_key_file`. Default: no key is needed."""

    api_key_file: Path | None = None
    """A file with an API key in each line, such as one of a mounted Secret; read at the start."""

    prefix_cache_salt_header: str | None = Field(None, pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
    """A header, and gRPC metadata, that says who calls. Only requests with the same value share
    prefixes (`prefix_cache`), and one without it shares none. The gateway must set or overwrite it
    in every request. Default: the API key, if there are any; else all callers share, and the time
    to a first token tells whether another one has sent the same prefix."""

    allowed_origins: Names = ()
    """Origins of web pages that may use the routes (CORS), separated by commas; `*` is any.
    Default: none."""

    batch_dir: Path | None = None
    """A directory for OpenAI's files and batches (`/v1/files`, `/v1/batches`), which are served
    with it alone. Batches yield to all other requests, and go on after a restart. Each API key sees
    its own. On a claim that several replicas share, one of them runs a batch."""

    batch_file_size: Bytes = Field(100 * 1024**2, ge=1)
    """Most bytes of a file that is uploaded for a batch; it is written to disk as it arrives. The
    default holds some 100,000 short requests."""

    batch_dir_size: Bytes = Field(1024**3, ge=1)
    """Most bytes of all files and results in `batch_dir`: an upload that exceeds them is refused,
    and a batch fails whose results do. The default is ten files of the largest size."""

    batch_days: int = Field(30, ge=1)
    """Days after which files, results and batches are removed, as at OpenAI."""

    access_log: bool = True
    """Whether each REST request that may have a body, and each gRPC call for inference, is a line
    in the log: its id, path, status, tokens and times, and never a prompt or a reply."""

    log_format: Literal["text", "json"] = "text"
    """The form of the lines of the log; `json` is one JSON object for each."""

    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """The least level of the log's lines. KServe's `KSERVE_LOGLEVEL` sets it too."""

    enable_docs_url: bool = False
    """Whether `/docs` shows the routes. The page loads its scripts from the internet."""

    ui: bool = False
    """Whether browsers get a page at `/`: the placement, live figures, and a playground. It loads
    nothing from elsewhere. Clients that do not ask for HTML get KServe's answer there."""

    timeout_keep_alive: int = Field(65, ge=1)
    """Seconds after which an idle REST connection is closed. The default is above the 60 s after
    which most load balancers close theirs."""

    ssl_certfile: Path | None = None
    """The certificate chain of REST and gRPC, as PEM. Both then have TLS, on the same ports as
    without it. REST uses a renewed file from the next connection on, gRPC from the next start.
    KServe's `KSERVE_TLS_CERT_FILE` sets it too."""

    ssl_keyfile: Path | None = None
    """The private key of `ssl_certfile`, without a passphrase. KServe's `KSERVE_TLS_KEY_FILE` sets
    it too."""

    grpc_tls: bool = True
    """Whether gRPC has TLS too if there is a `ssl_certfile`. KServe's own server has none there:
    `false` serves its clients as they are, inside a mesh for instance."""

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        """Refuse an empty list, such as that of an empty Secret: any request could pass.

        And refuse the word that a template makes of a key that it lacks: anybody could guess it.
        """
        if "api_key" in self.model_fields_set and not self.api_key:
            raise ValueError("api_key is set and has no key; leave it out if none is needed")
        if "None" in self.api_key:
            raise ValueError("api_key is None, which is no key; leave it out if none is needed")
        return self

    def scope_header(self) -> str | None:
        """Return the header with a request's scope in the prefix cache; None if all share."""
        if self.prefix_cache_salt_header is not None:
            return self.prefix_cache_salt_header
        return "authorization" if self.api_key or self.api_key_file else None

    def api_keys(self) -> tuple[str, ...]:
        """Return the API keys of the setting and of the file.

        Raises:
            ConfigurationError: The file cannot be read, or has no key.
        """
        if self.api_key_file is None:
            return self.api_key
        try:
            lines = self.api_key_file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"api_key_file {self.api_key_file} cannot be read: {error}."
            ) from None
        keys = [line.strip() for line in lines if line.strip() not in ("", "None")]
        if not keys:
            raise ConfigurationError(f"api_key_file {self.api_key_file} has no key.")
        return (*self.api_key, *keys)
