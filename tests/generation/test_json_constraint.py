"""What is written under a JSON schema parses and follows it; schemas that cannot be used are one clear error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from prefine.errors import ModelError, PrefineError
from prefine.generation.engine import writer_for
from prefine.generation.json_constraint import JsonConstraint
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Generated, Request
from prefine.models.forward.packed import PackedModel
from prefine.models.forward.path_probe import choose_path, take_padded_path
from tests.models import tiny

END, ROWS = 257, 264  # the model has more rows than the tokenizer has tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def random_model(padded: bool) -> PackedModel:
    model = PackedModel(tiny.make("llama", vocab_size=ROWS, max_position_embeddings=512), torch.float32).eval()
    if padded:
        take_padded_path(model)
    else:
        assert choose_path(model) is None
    return model


MODELS = {padded: random_model(padded) for padded in (False, True)}


def constraint(tokenizer: Any, schema: Mapping[str, Any] | bool | None = None) -> JsonConstraint:
    return JsonConstraint(tokenizer, ROWS, frozenset({END}), schema)


def write(
    tokenizer: Any, schemas: list[Any], tokens: int = 200, *, padded: bool = False, seed: int = 0, **sampling: Any
) -> list[Generated]:
    """A random model's text under each schema."""
    requests = [
        Request(
            [5, 6, 7 + n],
            Sampling(tokens, seed=seed + n, **sampling),
            frozenset({END}),
            constraint=constraint(tokenizer, schema),
        )
        for n, schema in enumerate(schemas)
    ]
    return writer_for(MODELS[padded], tokenizer, 4).write(requests)


def follows(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is what the schemas below ask for, by the rules of JSON Schema (draft 2020-12, sec. 6)."""
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            whole = isinstance(value, int) and not isinstance(value, bool)
            return whole and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
        case "array":
            fits = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return fits and all(follows(each, schema["items"]) for each in value)
        case "object":
            fits = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(schema["properties"])
            return fits and all(follows(each, schema["properties"][name]) for name, each in value.items())
    raise ValueError(schema)


def _integer(least: int, more: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": least + more}


def _string(least: int, more: int) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": least + more}


def _array(items: Any, least: int, more: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}


def _object(properties: dict[str, Any], required: bool) -> dict[str, Any]:
    needed = list(properties) if required else list(properties)[:1]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.builds(
        lambda a, b: {"type": "integer", "minimum": a, "maximum": a + b}, st.integers(-9, 99), st.integers(0, 50)
    ),
    st.builds(
        lambda a, b: {"type": "string", "minLength": a, "maxLength": a + b}, st.integers(0, 3), st.integers(0, 4)
    ),
    st.just({"enum": ["yes", "no", 7, None]}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(_array, inner, st.integers(0, 2), st.integers(0, 2)),
        st.builds(_object, st.dictionaries(st.sampled_from(["a", "name", 'q"é']), inner, max_size=3), st.booleans()),
    ),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(schema=SCHEMAS, seed=st.integers(0, 99), padded=st.sampled_from([False, False, True]))
def test_text_under_a_schema_follows_it(tokenizer: Any, schema: dict[str, Any], seed: int, padded: bool) -> None:
    """Of a random model, whose text would be noise; the end's token comes as soon as nothing else may."""
    for found in write(tokenizer, [schema] * 2, 400, padded=padded, seed=seed):
        assert found.finish == "stop"
        assert found.tokens[-1] == END
        assert follows(json.loads(found.text), schema), found.text


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_mode_is_any_object(tokenizer: Any, padded: bool, temperature: float) -> None:
    """Biased to the end so that a random model comes to one; beside a sequence without a constraint."""
    bias = tuple((tokenizer.encode(letter)[0], 9.0) for letter in '"}')
    found = write(tokenizer, [None] * 3, padded=padded, temperature=temperature, logit_bias=bias)
    assert any(each.finish == "stop" for each in found)
    for each in found:
        assert each.text.startswith("{")
        if each.finish == "stop":
            assert isinstance(json.loads(each.text), dict)


def test_log_probabilities_stay_the_models_own(tokenizer: Any) -> None:
    """Not those among the tokens that the schema allows."""
    (found,) = write(tokenizer, [{"enum": ["yes"]}])
    assert found.text == '"yes"'
    assert all(logprob < -0.5 for logprob in found.logprobs)


def masked(bound: JsonConstraint, tokenizer: Any, text: str) -> str:
    """The characters that may follow a text; . stands for the end."""
    for token in tokenizer.encode(text):
        assert bound.mask()[token]
        bound.accept(token)
    allowed = bound.mask().nonzero()[:, 0].tolist()
    return "".join("." if token == END else tokenizer.decode([token]) for token in allowed)


def test_masks_by_hand(tokenizer: Any) -> None:
    """One mask has an entry for each of the model's logits; the rows without a token are never allowed."""
    digits = {"type": "integer", "minimum": 10, "maximum": 12}
    assert masked(constraint(tokenizer, digits), tokenizer, "") == "1"
    assert masked(constraint(tokenizer, digits), tokenizer, "1") == "012"
    assert masked(constraint(tokenizer, digits), tokenizer, "12") == "."
    bound = constraint(tokenizer, {"enum": ["a"]})
    assert len(bound.mask()) == ROWS
    assert masked(bound, tokenizer, '"a"') == "."
    bound.accept(END)
    assert masked(bound, tokenizer, "") == "."  # a writer that goes on after the end gets no other token
    assert bound.failed is None


def test_copies_go_their_own_ways(tokenizer: Any) -> None:
    first = constraint(tokenizer, {"enum": ["ab", "cd"]})
    assert masked(first, tokenizer, '"') == "ac"
    second = first.copy()
    assert masked(first, tokenizer, "a") == "b"
    assert masked(second, tokenizer, "c") == "d"
    assert masked(first, tokenizer, 'b"') == "."
    assert second.failed is None


def test_the_schema_true_takes_any_value(tokenizer: Any) -> None:
    assert set(masked(constraint(tokenizer, True), tokenizer, "").strip()) == set('"{[-0123456789tfn')


def test_white_space_has_an_end(tokenizer: Any) -> None:
    """A model that repeats itself must come to the JSON some time."""
    bound = constraint(tokenizer)
    assert " " in masked(bound, tokenizer, "{" + 39 * " ")
    assert masked(bound, tokenizer, " ").strip() == masked(bound, tokenizer, "") == '"}'


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "wat"}, "wat"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, "unclosed group"),
        ({"$ref": "#/nope"}, "/nope"),
        ({"$ref": "http://example.com/x"}, "example.com"),
        ({"not": {}}, "not"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ({"enum": [float("nan")]}, "JSON"),
        ({"enum": [object()]}, "JSON"),
        ([1], "of type list, not an object"),
        (False, "Unsatisfiable"),
        ({"enum": ["x" * 65_536]}, "characters, and 65,536 are allowed"),
    ],
)
def test_a_bad_schema_is_one_line(tokenizer: Any, schema: Any, why: str) -> None:
    with pytest.raises(PrefineError, match="schema: the JSON schema cannot be used") as error:
        constraint(tokenizer, schema)
    assert why in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_schema_of_great_depth(tokenizer: Any) -> None:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(PrefineError, match="schema: the JSON schema cannot be used"):
        constraint(tokenizer, schema)


def test_what_cannot_end_or_be_read(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="no token ends"):
        JsonConstraint(tokenizer, ROWS, frozenset())

    class Slow:
        def __len__(self) -> int:
            return 5

    with pytest.raises(ModelError, match="needs a fast tokenizer"):
        JsonConstraint(Slow(), ROWS, frozenset({END}))


def test_a_schema_beyond_the_limits_ends_its_own_sequence_only(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says why; the text is not passed off as whole."""
    bound = constraint(tokenizer)
    monkeypatch.setattr(bound, "_matcher", _Failing())
    assert bound.mask().nonzero()[:, 0].tolist() == [END]
    bound.accept(END)
    assert bound.failed == "too complex"


class _Failing:
    """What llguidance's matcher is after it has exceeded a limit."""

    def is_stopped(self) -> bool:
        return True

    def is_error(self) -> bool:
        return True

    def get_error(self) -> str:
        return "too complex\n<state>\nTokens: …"
