"""Loads reward models by name.

There are three kinds: a reward run of prefine (adapter and head, or a whole model), a sequence classifier on a decoder,
and one on an encoder (models/scoring/cross_encoder.py). The first two use the packed forward.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from pydantic import ValidationError
from torch import Tensor

from prefine.data.reading.quarantine import refusal_of
from prefine.data.reading.rows import Problem
from prefine.data.tokens.fitting import fit_answers
from prefine.data.tokens.trees import TokenTree, collate, microbatches, parts_of
from prefine.errors import ModelError, TemplateError
from prefine.models.forward.active_adapter import OWN_ADAPTER
from prefine.models.forward.packed import ScoreHead, evaluating, standard_attention
from prefine.models.loading.heads import adapter_head_shape
from prefine.models.loading.load import LoadedModel, is_classifier, load_model
from prefine.models.loading.location import ADAPTER_WEIGHTS, Location, locate_model, one_line
from prefine.models.loading.weights import SCALE_FILE, require_plausible_config, within_files
from prefine.models.scoring.cross_encoder import CrossEncoder
from prefine.models.scoring.scorer import Question, RewardModel, Score, ScoreScale
from prefine.recipe.sections import ModelSection

log = logging.getLogger("prefine")

MAX_TOKENS = 8192


class PackedReward(RewardModel):
    """A reward model on a decoder, behind the packed forward.

    Args:
        loaded: its trunk and tokenizer.
        scale: the scale of its scores; None for a model trained elsewhere.
        closed: whether the score is read after the template's text that follows the end of turn. prefine's own models
            are read at the end of turn; others were trained on whole rendered conversations.
        max_tokens: packed tokens that are computed at once.
        head: its score head; None for that of `loaded`.
        adapter: its adapter on a shared trunk.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        scale: ScoreScale | None,
        *,
        closed: bool = False,
        max_tokens: int = MAX_TOKENS,
        head: ScoreHead | None = None,
        adapter: str = OWN_ADAPTER,
    ) -> None:
        self.name = loaded.location.name
        self.loaded = loaded
        self.scale = scale
        self.tokenizer = loaded.tokenizer
        self._closed = closed
        self._max_tokens = max_tokens
        self._head = head
        self._adapter = adapter
        self._told = False
        context = getattr(loaded.packed.causal.config.get_text_config(), "max_position_embeddings", None)
        self._max_length = scale.max_length_tokens if scale is not None else context or MAX_TOKENS

    def score(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        """See RewardModel."""
        waiting: list[list[TokenTree] | None] = []
        room = self._max_tokens
        for question in questions:
            trees = self._trees_or_none(question)
            tokens = sum(tree.tokens for tree in trees or ())
            if waiting and tokens > room:
                yield from self._scored(waiting)
                waiting, room = [], self._max_tokens
            waiting.append(trees)
            room -= tokens
        yield from self._scored(waiting)

    def lengths(self, question: Question) -> list[int] | None:
        """See RewardModel."""
        trees = self._trees_or_none(question)
        return None if trees is None else [len(tree.prompt) + len(answer) for tree in trees for answer in tree.answers]

    @property
    def network(self) -> Any:
        """See RewardModel."""
        return self.loaded.packed.causal

    def score_padded(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        """See RewardModel."""
        packed = self.loaded.packed
        path, before = packed.path, packed.path.packed
        with standard_attention(packed):
            path.packed = False
            try:
                scored = list(self.score(questions))
            finally:
                path.packed = before
        yield from scored

    def trees(self, question: Question) -> list[TokenTree] | None:
        """A question's tokens; None if an answer leaves its prompt no room.

        One tree, or several if it is longer than `max_tokens`. If the prompt must be cut there is one tree per answer,
        because the cut for one answer must not depend on the length of another.

        Raises:
            TemplateError: the model's chat template refuses it.
        """
        template, prompt, tools = self.loaded.template, question.prompt, question.tools
        whole = template.answers_tree(prompt, question.answers, closed=self._closed, tools=tools)
        if len(whole.prompt) + max(map(len, whole.answers), default=0) <= self._max_length:
            return parts_of(replace(whole, apart=True), self._max_tokens)
        alone = [
            fit_answers(template, prompt, (text,), self._max_length, closed=self._closed, tools=tools)
            for text in question.answers
        ]
        fitting = [each.tree for each in alone if each is not None]
        return fitting if len(fitting) == len(alone) else None

    def problem(self, question: Question) -> Problem:
        """See RewardModel."""
        try:
            self.trees(question)
        except TemplateError as error:
            return refusal_of(error)
        return super().problem(question)

    def _trees_or_none(self, question: Question) -> list[TokenTree] | None:
        try:
            return self.trees(question)
        except TemplateError:
            return None

    @torch.no_grad()
    def raw(self, trees: Sequence[TokenTree]) -> Tensor:
        """(answers, k) fp32 raw scores on the CPU of trees computed together."""
        packed = self.loaded.packed
        with evaluating(packed):
            scores: Tensor = packed(collate(trees).to(packed.device), head=self._head, adapter=self._adapter)
        return scores.cpu()

    def _scored(self, questions: Sequence[list[TokenTree] | None]) -> Iterator[list[Score] | None]:
        fitting = [tree for trees in questions for tree in trees or ()]
        largest = max((tree.tokens for tree in fitting), default=0)
        if largest > self._max_tokens and not self._told:
            self._told = True
            log.warning(
                "%s: an answer with its prompt has %d tokens, more than the %d that are computed at once: it is "
                "computed alone and needs more memory",
                self.name,
                largest,
                self._max_tokens,
            )
        lengths = [len(answer) for tree in fitting for answer in tree.answers]
        # A question can have several trees.
        raw = [self.raw(run) for run in microbatches(fitting, self._max_tokens)]
        scores = iter(self._centred(torch.cat(raw), lengths) if raw else [])
        for trees in questions:
            yield None if trees is None else [next(scores) for tree in trees for _ in tree.answers]


def is_reward_model(location: Location) -> bool:
    """Whether a located model gives scores and generates no text."""
    if location.adapter is not None:
        try:
            return adapter_head_shape(location.adapter / ADAPTER_WEIGHTS) is not None
        except Exception:  # noqa: BLE001 - a broken file: the loader says so
            return False
    from transformers import AutoConfig

    try:
        return is_classifier(AutoConfig.from_pretrained(location.base))
    except Exception:  # noqa: BLE001 - as above
        return False


def load_reward(section: ModelSection) -> RewardModel:
    """Load a reward model by name: a reward run, a folder, or a hub id.

    prefine's own models use weights quantized as in training, and the compute type of training unless another one is
    requested: otherwise the scores would not be those that the scale was measured on.

    Raises:
        ModelError: it does not exist, or is not a reward model (no score head, several labels).
        MissingDependencyError: it was trained on quantized weights, and bitsandbytes is not installed.
    """
    location = locate_model(section.name)
    scale = scale_of(location, section.revision)
    heads = _heads_of(location, section, scale)
    if heads is None:
        return CrossEncoder(location, section)
    if scale is not None:
        section = section.model_copy(update={"quantization": scale.quantization})
        if section.dtype == "auto" and scale.compute_dtype is not None:
            section = section.model_copy(update={"dtype": scale.compute_dtype})
        if len(scale.bias) != heads:
            raise ModelError(
                f"{section.name}: {SCALE_FILE} is for {len(scale.bias)} heads, but the weights have {heads}",
                "They belong to different models: train or download it again.",
            )
    whole = scale is not None and location.adapter is None
    loaded = load_model(section, None, trainable=False, heads=heads, weights_in_fp32=whole)
    return PackedReward(loaded, scale, closed=scale is None)


def read_scale(folder: Path) -> ScoreScale | None:
    """The scale saved with a reward model's weights; None if none was recorded.

    Raises:
        ModelError: the file is not valid.
    """
    path = folder / SCALE_FILE
    if not path.is_file():
        return None
    try:
        return ScoreScale.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise ModelError(f"{path}: {place}{first['msg']}", "Train the reward model again.") from None


def scale_of(location: Location, revision: str | None = None) -> ScoreScale | None:
    """As read_scale, for a located model; that of a hub model is downloaded."""
    folder = location.adapter or Path(location.base)
    if folder.is_dir():
        return read_scale(folder)
    try:
        file = hf_hub_download(location.base, SCALE_FILE, revision=revision)
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OSError,
        ValueError,
    ):  # no such file; the loader reports other faults
        return None
    return read_scale(Path(file).parent)


def _heads_of(location: Location, section: ModelSection, scale: ScoreScale | None) -> int | None:
    """The number of a model's score heads; None for a classifier whose head is not a linear map of the last token."""
    if location.adapter is not None:
        try:
            shape = adapter_head_shape(location.adapter / ADAPTER_WEIGHTS)
        except Exception:  # noqa: BLE001 (a broken file: the loader reports it)
            shape = None
        return 1 if shape is None else shape[0]  # the loader refuses an adapter without a head
    from transformers import AutoConfig, AutoModelForSequenceClassification

    require_plausible_config(location.base, section.revision)
    try:
        config = AutoConfig.from_pretrained(
            location.base, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
        if not is_classifier(config):
            return 1  # refused by the loader
        with within_files(location.base, section.revision, config), torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=section.trust_remote_code)
    except ModelError:
        raise
    except Exception as error:  # transformers and a model's own code raise many types
        raise ModelError(
            f"{location.name!r} could not be loaded ({one_line(error)})", "Check the name, the files and the network."
        ) from error
    if config.num_labels != 1 and scale is None:
        raise ModelError(
            f"{location.name!r} has {config.num_labels} labels instead of one score: it is not a reward model",
            "Name a model with one label.",
        )
    return int(config.num_labels) if isinstance(getattr(model, "score", None), torch.nn.Linear) else None
