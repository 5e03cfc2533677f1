"""Generation with ECGs: they go in with the prompt, beams take theirs along, and placeholders are never said."""

from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

from elm.model.configuration import ElmConfig, pooled_mask

Inputs = dict[str, Any]


class EcgGenerationMixin(GenerationMixin):
    """What `generate` has to know of a model whose inputs hold ECGs."""

    config: ElmConfig
    model: PreTrainedModel  # an `ElmModel`

    @property
    def ecg_inputs(self) -> tuple[str, ...]:
        """Every name under which `forward` takes something of an ECG."""
        return tuple(self.model.ecg_inputs)

    def never_say_placeholders(self) -> None:
        """Without a cache, a placeholder the model said itself would be one more than its ECGs have tokens."""
        never = [self.config.ecg_token_id]
        if (start := self.config.vocabulary_start) is not None:
            never += range(start, start + self.config.encoder_config.vocabulary)
        self.generation_config.suppress_tokens = never

    def _validate_model_kwargs(self, model_kwargs: Inputs) -> None:
        # The stock check knows only the names in forward's signature; an ECG's are its encoder's affair.
        super()._validate_model_kwargs({k: v for k, v in model_kwargs.items() if k not in self.ecg_inputs})

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, is_first_iteration: bool = False, **kwargs: Any
    ) -> Inputs:
        """The ECG goes in with the prompt only: afterwards it lives in the cache."""
        ecg = {name: kwargs.pop(name) for name in self.ecg_inputs if name in kwargs}
        kwargs["is_first_iteration"] = is_first_iteration
        inputs: Inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs.update(ecg)
        if is_first_iteration and not ecg:  # the prompt comes with an empty cache, so forward does not look
            self.model.refuse_placeholders(inputs.get("input_ids"))
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, *, input_ids: torch.Tensor | None = None, **model_kwargs: Any
    ) -> tuple[torch.Tensor | None, Inputs]:
        """Beams and returned sequences: rows are repeated one by one, ECGs conversation by conversation.

        The stock method would turn the ECGs [a, b] of one conversation into [a, a, b, b], and rows would silently
        answer about the wrong ECGs.
        """
        ecg = {name: model_kwargs.pop(name) for name in self.ecg_inputs if model_kwargs.get(name) is not None}
        if expand_size > 1 and ecg and input_ids is not None:
            order = self._ecgs_of_expanded_rows(input_ids, ecg, expand_size)
            ecg = {name: value[order.to(value.device)] for name, value in ecg.items()}
        input_ids, expanded = super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **model_kwargs)
        return input_ids, {**expanded, **ecg}

    def _ecgs_of_expanded_rows(self, input_ids: torch.Tensor, ecg: Inputs, expand_size: int) -> torch.Tensor:
        """Index of the ECG for each place in the expanded batch. A row owns the ECGs that fill its placeholders."""
        mask = ecg.get("ecg_mask", ecg.get("token_mask"))
        if mask is None:
            raise ValueError("beams and several returned sequences need token_mask (or ecg_mask) beside the ECGs")
        ends = pooled_mask(mask, self.config.projector_pool).sum(dim=1).cumsum(0).tolist()
        row_ends = (input_ids == self.config.ecg_token_id).sum(dim=1).cumsum(0).tolist()
        owner = [sum(end > row_end for row_end in row_ends) for end in ends]
        if ends and ends[-1] != row_ends[-1]:
            raise ValueError(f"the text has {row_ends[-1]} <ecg> tokens but the ECGs give {ends[-1]}")
        if ends and any(end not in [0, *ends] for end in row_ends):
            raise ValueError(
                f"an ECG is split: the <ecg> tokens of the rows end at {row_ends}, those of ECGs at {ends}"
            )
        owned = [[ecg for ecg, its_row in enumerate(owner) if its_row == row] for row in range(len(row_ends))]
        return torch.tensor([ecg for ecgs in owned for ecg in ecgs * expand_size], dtype=torch.long)
