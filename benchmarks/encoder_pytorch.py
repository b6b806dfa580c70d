# SPDX-License-Identifier: Apache-2.0
"""PyTorch through transformers: FP32, or dynamic int8 of every linear with oneDNN's products.

oneDNN is the fastest of PyTorch's quantized engines where there is AMX (about 1.5 times x86 and fbgemm at 128
tokens); elsewhere PyTorch's own choice stays. A scale per channel costs no time and is more exact than one
per matrix. Also holds the module that the other converters start from.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, logging

from tvmq.pooling import read_pooling

from .encoder_engines import Batch, EncoderSetup, pad

Attention = Literal["sdpa", "eager"]
INPUTS = ("input_ids", "attention_mask")
INT8_ENGINE = "onednn"


class EncoderModule(nn.Module):
    """ids, mask int64[texts, tokens] -> embeddings [texts, width], or logits [texts, labels]."""

    def __init__(self, setup: EncoderSetup, attention: Attention = "sdpa") -> None:
        super().__init__()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.embeds = setup.task == "embed"
        kind: Any = AutoModel if self.embeds else AutoModelForSequenceClassification
        model = kind.from_pretrained(setup.model, dtype=torch.float32, attn_implementation=attention)
        if self.embeds:
            model.pooler = None  # the product for BERT's next-sentence task; nothing here reads it
        self.model: Any = model.eval()
        self.pooling = read_pooling(setup.model)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        if not self.embeds:
            return output.logits
        rows = self._pooled(output.last_hidden_state, attention_mask)
        return nn.functional.normalize(rows, dim=-1) if self.pooling.normalize else rows

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.pooling.kind == "cls":
            return hidden[:, 0]
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


class PyTorchEncoder:
    """The module in inference mode."""

    def __init__(self, setup: EncoderSetup, *, int8: bool) -> None:
        torch.set_num_threads(setup.threads)
        self._padding = setup.padding
        self._module: nn.Module = EncoderModule(setup)
        if int8:
            self._module = _dynamic_int8(self._module)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        inputs = [torch.from_numpy(array) for array in pad(batch, self._padding)]
        with torch.inference_mode():
            return self._module(*inputs).numpy()


def _dynamic_int8(module: nn.Module) -> nn.Module:
    # One setting of the process, read when weights are packed and when a product runs.
    if torch.cpu._is_amx_tile_supported():
        torch.backends.quantized.engine = INT8_ENGINE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its successor at every call
        quantization = torch.ao.quantization
        return quantization.quantize_dynamic(module, {nn.Linear: quantization.per_channel_dynamic_qconfig})
