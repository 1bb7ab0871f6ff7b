"""The class of an accelerated transformers model; importing it imports transformers."""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor
from transformers.modeling_outputs import DepthEstimatorOutput


class DepthAnythingForDepthEstimation(transformers.DepthAnythingForDepthEstimation):  # type: ignore[misc]
    """transformers' model, whose forward is dafast's where it can be; see `dafast.accelerate`.

    It has the name of the original because transformers writes it to config.json and looks it up
    in its pipelines.
    """

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the original forward."""
        fast = vars(self).get("_dafast")  # a new object of this class has none
        config = self.config
        more = config.output_attentions if output_attentions is None else output_attentions
        states = (
            config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        if fast is not None and labels is None and not (kwargs or more or states):
            depth = fast(self, pixel_values)
            if depth is not None:
                as_dict = config.return_dict if return_dict is None else return_dict
                return DepthEstimatorOutput(predicted_depth=depth) if as_dict else (depth,)
        return super().forward(
            pixel_values,
            labels=labels,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            **kwargs,
        )
