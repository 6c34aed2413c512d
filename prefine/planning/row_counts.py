"""The rows of the stages of a plan: stages that read the same data alike count them once."""

from __future__ import annotations

from prefine.errors import DataError, ModelError, TemplateError
from prefine.planning.stage_facts import StageFacts
from prefine.planning.workload import Workload, counted_rows, longest_rows, record_type


class RowCounts:
    """Counted rows by data, kind of records and tokenizer. Counting streams a dataset of the hub as a whole."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Workload] = {}

    def of(self, facts: StageFacts) -> Workload:
        """The rows of a stage's data, or the longest rows where the data or the tokenizer are not there yet."""
        from prefine.models.loading.load import load_tokenizer
        from prefine.models.loading.location import locate_model

        data, section = facts.recipe.data, facts.recipe.model.model_copy(update={"name": facts.model.name})
        try:
            kind = record_type(facts.method, data)
            key = (
                kind.__name__,
                data.model_dump_json(exclude={"max_length_tokens"}),
                section.model_dump_json(include={"name", "revision", "chat_template", "template_kwargs"}),
            )
            if key not in self._known:
                template = load_tokenizer(locate_model(facts.model.name), section)
                self._known[key] = counted_rows(kind, data, template)
            return self._known[key]
        except (DataError, ModelError, TemplateError):
            return longest_rows(facts.method, data.max_length_tokens)
