"""The models that a server offers: adapters of one base, which is in memory once, and reward models."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prefine.errors import ModelError
from prefine.models.loading.load import LoadedModel
from prefine.models.loading.location import Location, locate_model
from prefine.models.scoring.packed_scorer import is_reward_model, load_reward, scale_of
from prefine.models.scoring.scorer import RewardModel
from prefine.models.shared_base import join_language, join_reward, load_host, on_same_base, shares_base
from prefine.recipe.sections import ModelSection
from prefine.web.errors import ApiError


@dataclass(frozen=True)
class ServedModel:
    """A language model that clients can name.

    Attributes:
        id: what clients call it.
        name: what the server's user called it.
        loaded: the model; several share their weights.
        adapter: peft's name of its adapter; None for the base itself.
        created: when it was loaded, seconds since 1970.
    """

    id: str
    name: str
    loaded: LoadedModel
    adapter: str | None
    created: int

    @property
    def fingerprint(self) -> str:
        """Of the base's weights, for OpenAI's field system_fingerprint."""
        return f"prefine-{self.loaded.base_sha256[:12]}"


@dataclass(frozen=True)
class ServedReward:
    """A reward model that clients can name; fields as in ServedModel."""

    id: str
    name: str
    reward: RewardModel
    created: int


T = TypeVar("T")
Served = TypeVar("Served", ServedModel, ServedReward)


@dataclass
class Models:
    """What a server offers, by the names that clients use."""

    languages: dict[str, ServedModel] = field(default_factory=dict)
    rewards: dict[str, ServedReward] = field(default_factory=dict)

    def language(self, name: str | None) -> ServedModel:
        """The language model of this name; without a name the only one.

        Raises:
            ApiError: there is none.
        """
        return _named(name, self.languages, self.rewards, "generates no text; POST /v1/score scores answers with it")

    def reward(self, name: str | None) -> ServedReward:
        """The reward model of this name; without a name the only one.

        Raises:
            ApiError: there is none.
        """
        return _named(name, self.rewards, self.languages, "is a language model, which gives no scores")

    def all(self) -> list[ServedModel | ServedReward]:
        """All of them, in the order in which they were named."""
        return [*self.languages.values(), *self.rewards.values()]


def _named(name: str | None, models: Mapping[str, Served], others: Mapping[str, Any], why_not: str) -> Served:
    if name is None and len(models) == 1:
        return next(iter(models.values()))
    for model in models.values():
        if name in (model.id, model.name):
            return model
    offered = ", ".join(models) or "none of this kind"
    if any(name in (other.id, other.name) for other in others.values()):
        raise ApiError(400, f"model: {name!r} {why_not}; for this request there are: {offered}", param="model")
    if name is None:
        raise ApiError(
            400, f"model: is missing; this server has: {offered}", param="model", code="missing_required_parameter"
        )
    raise ApiError(
        404,
        f"model: there is no {name[:100]!r}; this server has: {offered}",
        kind="not_found_error",
        param="model",
        code="model_not_found",
    )


def load_models(names: Sequence[str], section: ModelSection) -> Models:
    """Load what a user named, each once, in a thread that ends with it.

    OpenMP keeps helper threads for each thread that has computed. As soon as there are more of them than cores, they
    sleep between products instead of waiting for the next one. A main thread that loads the models, with the worker's
    thread beside it, made a token take 80 ms instead of 45 ms (SmolLM2-135M in float32, one client, 2 cores).

    Args:
        names: of runs, adapters, model folders or hub models; at least one.
        section: how they are loaded (device, dtype, chat template).

    Raises:
        ModelError: one of them cannot be loaded, or the language models are not all on one base.
    """
    return _in_thread(partial(_loaded, names, section))


def _in_thread(call: Callable[[], T]) -> T:
    """What the call returns or raises in a thread of its own. Ctrl-C does not wait for it."""
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            done.set_exception(error)

    thread = threading.Thread(target=work, name="prefine-load", daemon=True)
    thread.start()
    result = done.result()
    thread.join()
    return result


def _loaded(names: Sequence[str], section: ModelSection) -> Models:
    locations = [locate_model(name) for name in dict.fromkeys(names)]
    ids = dict(zip((location.name for location in locations), _short_names(locations), strict=True))
    scoring = [location for location in locations if is_reward_model(location)]
    languages = [location for location in locations if location not in scoring]
    found = Models()
    host = load_host(languages, section) if languages else None
    for location in languages:
        assert host is not None  # noqa: S101
        served = _on_base(host, location, section, ids[location.name])
        found.languages[served.id] = served
    for location in scoring:
        reward = _reward(host, location, section, ids[location.name])
        found.rewards[ids[location.name]] = ServedReward(ids[location.name], location.name, reward, int(time.time()))
    return found


def _short_names(locations: Sequence[Location]) -> list[str]:
    """The last part of each path, or the whole name where two would be called the same; a hub id stays whole."""
    short = [_short(location.name) for location in locations]
    counts = Counter(short)
    return [one if counts[one] == 1 else location.name for one, location in zip(short, locations, strict=True)]


def _short(name: str) -> str:
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name.removeprefix("embedded:")


def _on_base(host: LoadedModel, location: Location, section: ModelSection, short: str) -> ServedModel:
    now = int(time.time())
    if location != host.location and not on_same_base(host, location):
        raise ModelError(
            f"{location.name!r} is on another base model than {host.location.name!r} ({host.location.base_name})",
            f"Serve it by itself: prefine serve {location.name} --port 8001",
        )
    loaded, adapter = join_language(host, location, f"served_{short}", section)
    return ServedModel(short, location.name, loaded, adapter, now)


def _reward(host: LoadedModel | None, location: Location, section: ModelSection, short: str) -> RewardModel:
    """A reward model on the language models' base where it is that of its training; else by itself."""
    own = section.model_copy(update={"name": location.name})
    if host is not None and shares_base(host, location, scale_of(location), own) is None:
        return join_reward(host, location, "reward_" + short.replace(".", "_").replace("/", "_"))
    return load_reward(own)
