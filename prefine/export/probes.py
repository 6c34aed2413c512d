"""What an export is compared on: held-out prompts of the run with their answers, or bundled prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from pydantic import ValidationError

from prefine.data.tokens.encoding import any_of
from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import TokenTree
from prefine.errors import PrefineError
from prefine.export.bundled_prompts import BUNDLED
from prefine.export.reload import ProbeInput
from prefine.json_reading import parse_json
from prefine.records import Conversation, Demonstration, Message, Preference, Prompt, Vote
from prefine.runs.directory import RunDirectory

PROBES = 32
# Of a larger store the first rows are looked at.
_MOST_ROWS = 2000
# Longer prompts and answers would show no more of an export's errors, and take longer.
MOST_PROMPT_TOKENS = 192
MOST_ANSWER_TOKENS = 24
# Logits are compared at so many positions that they fill this many bytes at most, in each of the two models.
MOST_LOGIT_BYTES = 256 << 20


@dataclass(frozen=True)
class Probe:
    """A prompt with an answer to compare on.

    Attributes:
        turns: the prompt's turns, plain text alone.
        prompt: its token ids as prefine renders and encodes them.
        answer: token ids of what follows; empty until something is generated, where the data has no answer.
        heldout: whether it is a held-out row of the run.
    """

    turns: Conversation
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    heldout: bool

    @property
    def tree(self) -> TokenTree:
        """For the packed forward: every token of the answer is a target."""
        return TokenTree(self.prompt, (self.answer,), (None,))

    def input(self) -> ProbeInput:
        """For the reload."""
        turns = [{"role": turn.role, "content": turn.content} for turn in self.turns]
        return ProbeInput(turns, [*self.prompt, *self.answer[:-1]], len(self.answer))


def probes_of(run: RunDirectory | None, template: ChatTemplate, vocabulary: int, context: int) -> list[Probe]:
    """PROBES prompts: held-out rows of the run, as far as there are, then bundled ones.

    Rows with tools, with reasoning, or with the text of a control token are left out: libraries other than prefine make
    a control token of such text, or render such rows from other fields.

    Args:
        run: whose data/ is read; None takes bundled prompts alone.
        template: renders and encodes them.
        vocabulary: columns of the model's logits; the longer, the fewer tokens of an answer are compared.
        context: tokens that the model can look at.
    """
    room = max(1, MOST_LOGIT_BYTES // (4 * vocabulary * PROBES))
    answer_tokens = min(MOST_ANSWER_TOKENS, max(8, room), max(1, context // 2))
    found = [] if run is None else list(_heldout(run, template))
    found = [each for each in found if len(each.prompt) + answer_tokens <= context]
    short = [each for each in found if len(each.prompt) <= MOST_PROMPT_TOKENS]
    if len(short) < PROBES:
        longer = sorted((each for each in found if each not in short), key=lambda each: len(each.prompt))
        short += longer[: PROBES - len(short)]
    spread = [short[place * len(short) // PROBES] for place in range(PROBES)] if len(short) > PROBES else short
    asked = (_encoded((Message(role="user", content=text),), "", template, heldout=False) for text in BUNDLED)
    bundled = (each for each in asked if each is not None and len(each.prompt) + answer_tokens <= context)
    chosen = [*spread, *islice(bundled, PROBES - len(spread))]
    return [replace(each, answer=each.answer[:answer_tokens]) for each in chosen]


def answer_length(probes: Sequence[Probe]) -> int:
    """How many tokens are generated where the data has no answer: as many as answers have."""
    return max((len(each.answer) for each in probes), default=0) or MOST_ANSWER_TOKENS // 2


def _heldout(run: RunDirectory, template: ChatTemplate) -> Iterator[Probe]:
    path = run.data / "heldout.arrow"
    if not path.is_file():
        return
    store = TokenStore(path)
    for row in range(min(len(store), _MOST_ROWS)):
        asked = _asked(store.record_json(row))
        if asked is not None and (probe := _encoded(*asked, template, heldout=True)) is not None:
            yield probe


def _asked(record: str) -> tuple[Conversation, str] | None:
    """Prompt and answer of a record; None where it has more than plain turns."""
    values = parse_json(record.encode())
    keys = values.keys() if isinstance(values, dict) else ()
    kind = next((kind for key, kind in _KINDS.items() if key in keys), Prompt)
    try:
        read = kind.model_validate_json(record)
    except ValidationError:  # of another release
        return None
    if isinstance(read, Demonstration):
        last = read.learned_turns[-1]
        turns, answer = read.messages[:last], read.messages[last]
        said = "" if answer.tool_calls or answer.reasoning else answer.content
    else:
        turns = read.prompt
        said = read.chosen if isinstance(read, Preference) else read.completion if isinstance(read, Vote) else ""
    plain = not read.tools and all(not (t.tool_calls or t.reasoning or t.role == "tool") for t in turns)
    return (turns, said) if plain else None


_KINDS: dict[str, type[Demonstration | Preference | Vote]] = {
    "messages": Demonstration,
    "chosen": Preference,
    "completion": Vote,
}


def _encoded(turns: Conversation, answer: str, template: ChatTemplate, *, heldout: bool) -> Probe | None:
    control = any_of(template.tokenizer.convert_ids_to_tokens(sorted(template.control_ids)))
    if any(control.search(turn.content) for turn in turns):
        return None
    try:
        prompt = tuple(template.prompt_ids(turns))
        # The tree's prompt may be without what a template prefills: an export is asked with it, as users do.
        said = tuple(template.answer_ids(turns, answer)) if answer else ()
    except PrefineError:  # the template does not write such a row
        return None
    return Probe(turns, prompt, said, heldout)
