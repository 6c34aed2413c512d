"""The models of a comparison by name. Two adapters of one base share its weights; of other models one at a time is in
memory.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from prefine.comparisons.result import Side
from prefine.errors import ModelError, RecipeError, about
from prefine.evaluation.comparing.questions import is_run
from prefine.json_reading import read_json_object
from prefine.judges.endpoint import endpoint_url
from prefine.models.forward.active_adapter import using_adapter
from prefine.models.loading.identity import identity_of, tokenizer_hash
from prefine.models.loading.load import LoadedModel, load_tokenizer
from prefine.models.loading.location import Location, locate_model
from prefine.models.loading.weights import fetched_whole
from prefine.models.scoring.packed_scorer import is_reward_model
from prefine.models.shared_base import has_adapter, join_language, load_host, on_same_base
from prefine.paths import expanded
from prefine.recipe.sections import ModelSection, named_model
from prefine.runs.directory import RunDirectory

OWN_FIELDS = {f"model.{name}": name for name in ("chat_template", "device", "dtype")}
"""Settings of all models of a comparison, in error messages."""

ENDPOINT_KEY_VARIABLE = "PREFINE_ENDPOINT_KEY"
"""The environment variable with the key of endpoints that are compared; a judge's key has its own."""

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class EndpointName:
    """A model behind an OpenAI-compatible endpoint, as `http://host:port/v1#MODEL` names it."""

    url: str
    model: str


def endpoint_name(name: str) -> EndpointName | None:
    """The endpoint that a name means; None if it means none.

    Raises:
        RecipeError: it is a URL without a model, or one that holds a key, which would come into files.
    """
    if not re.match(r"https?://", name):
        return None
    url, _, model = name.partition("#")
    if not model:
        raise RecipeError(f"{name!r} is an endpoint without a model", f"Add the model's name: {url.rstrip('/')}#MODEL.")
    return EndpointName(endpoint_url(url, ENDPOINT_KEY_VARIABLE), model)


@dataclass(frozen=True)
class NamedSide:
    """One of the compared models, located but not loaded.

    Attributes:
        role: candidate, baseline or reference.
        name: as the user gave it.
        location: None for an endpoint. endpoint: None for a model.
        own: fields of a ModelSection that only this model is loaded with: the hub revision of a run's base, and the
            chat template of the model that a run began with.
    """

    role: str
    name: str
    location: Location | None
    endpoint: EndpointName | None
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> Path | None:
        """The run's folder, if it is a run."""
        path = Path(expanded(self.name))
        return path if self.endpoint is None and is_run(path) else None

    @property
    def recipe(self) -> dict[str, Any]:
        """The complete recipe of a run; empty for other models."""
        if self.run is None:
            return {}
        found = read_json_object(RunDirectory(self.run).manifest)["recipe"]
        return found if isinstance(found, dict) else {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything about it that decides its answers."""
        if self.endpoint is not None:
            return {"endpoint": self.endpoint.url, "model": self.endpoint.model}
        assert self.location is not None  # noqa: S101
        files, tokenizer = identity_of(self.location, self.revision), tokenizer_hash(self.location, self.revision)
        template = {name: self.own[name] for name in ("chat_template", "template_kwargs") if self.own.get(name)}
        return {"files": files.digest, "tokenizer": tokenizer, **({"template": template} if template else {})}

    @property
    def revision(self) -> str | None:
        """Of the base at the hub; None for the newest."""
        found = self.own.get("revision")
        return found if isinstance(found, str) else None

    def fetch(self) -> None:
        """Fetch a hub's model, as files that are not there have no hash to be told apart by.

        Raises:
            ModelError: it cannot be fetched.
        """
        if self.location is not None and not Path(self.location.base).is_dir():
            with about(self.role, OWN_FIELDS):
                fetched_whole(self.location.base, self.revision)

    def section(self, common: ModelSection) -> ModelSection:
        """How it is loaded.

        Args:
            common: how all are; a chat template in it comes before that of a run's recipe.
        """
        own = dict(self.own) if common.chat_template is None else {"revision": self.revision}
        return common.model_copy(update={**own, "name": self.location.name if self.location else self.name})

    def shares_tokens(self, other: NamedSide, section: ModelSection) -> bool:
        """Whether every token has the same id in another model, so that it can read this one's answers; False for
        endpoints, whose tokens are unknown.

        Args:
            section: how tokenizers are loaded.
        """
        if self.settings.get("tokenizer") and self.settings.get("tokenizer") == other.settings.get("tokenizer"):
            return True
        if self.location is None or other.location is None:
            return False
        one, two = (
            load_tokenizer(location, side.section(section)).tokenizer.get_vocab()
            for side, location in ((self, self.location), (other, other.location))
        )
        return bool(one == two)

    def described(self, dtype: str | None = None) -> Side:
        """For the report.

        Args:
            dtype: the number type in which the models that are not behind an endpoint computed.
        """
        if self.endpoint is not None:
            facts = {"endpoint": self.endpoint.url, "model": self.endpoint.model}
            return Side(name=self.name, kind="endpoint", identity=self.endpoint.model, facts=facts)
        assert self.location is not None  # noqa: S101
        facts = {"base": self.location.base_name}
        if dtype is not None:
            facts["dtype"] = dtype
        if self.run is not None:
            manifest = read_json_object(RunDirectory(self.run).manifest)
            facts |= {"stage": str(manifest.get("stage", "")), "started": str(manifest.get("started", ""))}
        kind = "model" if self.run is None else "run"
        return Side(name=self.name, kind=kind, identity=self.settings["files"], facts=facts)


def named_side(role: str, name: str, own: Mapping[str, Any] | None = None) -> NamedSide:
    """Find a model by name.

    Args:
        own: see NamedSide; besides what its run says.

    Raises:
        ModelError: there is no such model, or it generates no text.
        RecipeError: no model can have that name.
    """
    if (endpoint := endpoint_name(name)) is not None:
        return NamedSide(role, name, None, endpoint)
    with about(role, OWN_FIELDS):
        location = locate_model(named_model(name).name)
        if is_reward_model(location):
            raise ModelError(
                f"{name!r} is a reward model, which generates no text",
                "Compare language models; name it with --reward to judge them.",
                field="model.name",
            )
    side = NamedSide(role, name, location, None)
    revision = _model_section(side).get("revision")
    of_run = {"revision": revision} if revision else {}
    return replace(side, own={**of_run, **(own or {})})


def _model_section(side: NamedSide) -> Mapping[str, Any]:
    """The section `model` of a run's recipe; empty for other models."""
    found = side.recipe.get("model")
    return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True)
class OpenSide:
    """A model that is in memory, with its adapter active inside `Sides.open`."""

    loaded: LoadedModel
    name: str


class Sides:
    """Loads the compared models when they are needed.

    Args:
        sides: by role; endpoints are not loaded.
        section: how models are loaded; its name is replaced.
        chosen: called with the number type of the first model, in which the others are loaded, too.
    """

    def __init__(
        self, sides: Mapping[str, NamedSide], section: ModelSection, chosen: Callable[[str], None] = lambda dtype: None
    ) -> None:
        self._sides = sides
        self._section = section
        self._chosen = chosen
        self._host: LoadedModel | None = None
        self._revision: str | None = None  # of the host's base
        self._joined: dict[str, tuple[LoadedModel, str | None]] = {}

    @contextmanager
    def open(self, role: str) -> Iterator[OpenSide]:
        """Inside, the model of a role is in memory, and its adapter is the active one.

        Raises:
            ModelError: it cannot be loaded.
        """
        side = self._sides[role]
        if side.location is None:
            raise ValueError(f"the {role} is an endpoint")
        with about(role, OWN_FIELDS):
            loaded, adapter = self._joined.get(role) or self._load(side, side.location)
        if not has_adapter(loaded.packed.model):
            yield OpenSide(loaded, role)
            return
        with using_adapter(loaded.packed.model, adapter):
            yield OpenSide(loaded, role)

    def close(self) -> None:
        """Drop the models, and free their memory before the next ones are loaded."""
        self._host, self._revision, self._joined = None, None, {}
        gc.collect()  # modules and their hooks refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, side: NamedSide, location: Location) -> tuple[LoadedModel, str | None]:
        if self._host is None or not self._can_join(side, location):
            self.close()  # before the next one is in memory
            # Only models of one base can join; the host is the one with an adapter, if any.
            host = min([side, *self._sharing(side, location)], key=_has_no_adapter)
            self._host = load_host([host.location or location], host.section(self._section))
            self._revision = side.revision
            dtype = str(self._host.packed.compute_dtype).removeprefix("torch.")
            self._section = self._section.model_copy(update={"dtype": dtype})
            self._chosen(dtype)
        section = side.section(self._section)
        self._joined[side.role] = join_language(self._host, location, f"compared_{side.role}", section)
        return self._joined[side.role]

    def _sharing(self, side: NamedSide, location: Location) -> list[NamedSide]:
        """The other models on one base with this one."""
        return [
            each
            for each in self._sides.values()
            if each is not side
            and each.location is not None
            and each.revision == side.revision
            and _same_base(location, each.location)
        ]

    def _can_join(self, side: NamedSide, location: Location) -> bool:
        host = self._host
        if host is None or side.revision != self._revision:
            return False
        joins = location.adapter is None or has_adapter(host.packed.model)
        return location == host.location or (joins and on_same_base(host, location, side.revision))


def _has_no_adapter(side: NamedSide) -> bool:
    return side.location is None or side.location.adapter is None


def _same_base(one: Location, other: Location) -> bool:
    """Whether two located models are on one base, as far as names and recorded hashes say."""
    if one.base_sha256 and other.base_sha256:
        return one.base_sha256 == other.base_sha256
    return one.base == other.base


def starting_side(candidate: NamedSide) -> NamedSide:
    """What a candidate is compared with unless the user says: the model that its run began with, as the run loaded it.

    Raises:
        RecipeError: it is not a run, so nothing says which one that is.
        ModelError: see `named_side`.
    """
    section = _model_section(candidate)
    name = section.get("name")
    if isinstance(name, str):
        own = {key: section[key] for key in ("revision", "chat_template", "template_kwargs") if section.get(key)}
        return named_side("baseline", name, own)
    if candidate.location is not None and candidate.location.adapter is not None:
        return named_side("baseline", candidate.location.base_name)
    raise RecipeError(
        f"{candidate.name!r} is not a run, so nothing says what to compare it with", "Name a model with --against."
    )


def as_section(device: str, dtype: Dtype, chat_template: str | None) -> ModelSection:
    """How models are loaded; the name is a placeholder.

    Raises:
        RecipeError: a setting has an invalid value.
    """
    with about(None, OWN_FIELDS):
        return named_model("embedded:smollm2-135m", device=device, dtype=dtype, chat_template=chat_template)


def with_dtype(section: ModelSection, dtype: str | None) -> ModelSection:
    """A section with the number type that an earlier call chose."""
    return section if dtype is None or section.dtype != "auto" else section.model_copy(update={"dtype": dtype})
