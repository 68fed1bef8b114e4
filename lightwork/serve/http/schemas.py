"""Request bodies of the OpenAI API, with the additions that vLLM's users know.

A field OpenAI defines and this server does not do is refused by name; one that nobody defines is accepted
and named in a reply header.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1, le=1 << 20)]
Text = str | list[str] | list[int] | list[list[int]]

# Defined by OpenAI and not done here, with the values that ask for nothing: they are accepted, as null is.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Labels and hints: nothing in a reply depends on them.
IGNORED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
    }
)


class Lenient(BaseModel):
    """Null stands for a field left out, as in OpenAI's own schema; unknown fields are kept to be named.

    unsupported: fields that its API defines and that are not done here, with values that ask for nothing.
    hints: fields that are accepted, and nothing in a reply depends on.
    """

    model_config = ConfigDict(extra="allow")
    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    hints: ClassVar[Collection[str]] = ()

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if v is not None or k not in cls.model_fields}


class StreamOptions(Lenient):
    include_usage: bool = False
    # Padding against an eavesdropper who measures packets; without it a stream is only smaller.
    include_obfuscation: bool = False


class Body(Lenient):
    """What chat and completions share. priority: vLLM's, the lower the sooner, unlike `Request.priority`."""

    unsupported = UNSUPPORTED
    hints = IGNORED

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: float | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    max_tokens: Count | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    user: str = ""
    priority: int = 0

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Part(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None


class SaidFunction(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str
    arguments: str = ""


class SaidCall(BaseModel):
    """A call that the assistant made earlier. arguments: JSON, as a string."""

    model_config = ConfigDict(extra="allow")
    id: str = ""
    type: Literal["function"] = "function"
    function: SaidFunction


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[SaidCall] | None = None
    tool_call_id: str | None = None


class Function(Lenient):
    """parameters: a JSON schema of an object; without one, there are none."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class Tool(Lenient):
    type: Literal["function"]
    function: Function


class ChosenFunction(Lenient):
    name: str


class NamedChoice(Lenient):
    """The function that is to be called."""

    type: Literal["function"]
    function: ChosenFunction


class ChatBody(Body):
    """continue_final_message: the last message is how the reply begins, and the model writes on from there
    (vLLM's, which then wants add_generation_prompt: false). return_tokens_as_token_ids: log-probabilities
    name tokens as token_id:ID (vLLM's).
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    return_tokens_as_token_ids: bool = False

    @property
    def reads_calls(self) -> bool:
        """Whether calls in its reply are calls, or text."""
        return bool(self.tools) and self.tool_choice != "none"


class CompletionBody(Body):
    prompt: Text
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class EmbeddingBody(Lenient):
    """One embedding per input. truncate_prompt_tokens: most tokens of a text, -1: as many as the context has;
    a longer one is cut. truncation_side: what it loses, its beginning or its end."""

    hints = IGNORED

    model: str
    input: Text
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Count | None = None
    add_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] = "left"
    user: str = ""


class TokenizeBody(Lenient):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(Lenient):
    model: str | None = None
    tokens: list[int]
