# SPDX-License-Identifier: Apache-2.0
"""PyTorch through transformers' generate: FP32, or dynamic int8 for every linear."""

from __future__ import annotations

import warnings
from typing import Any

from .engines import Setup


class PyTorchEngine:
    """MarianMTModel with its key/value cache, in inference mode."""

    def __init__(self, setup: Setup, *, int8: bool) -> None:
        import torch
        from transformers import MarianMTModel, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(setup.threads)
        self._torch = torch
        model = MarianMTModel.from_pretrained(setup.model, dtype=torch.float32).eval()
        model.generation_config.max_length = None
        self._limit = int(model.config.max_position_embeddings) - 1
        if int8:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.ao announces its successor at every call
                model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        self._model: Any = model

    def translate(self, source: list[int], *, beams: int, forced: int | None) -> list[int]:
        ids = self._torch.tensor([source])
        with self._torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                num_beams=beams,
                do_sample=False,
                min_new_tokens=forced,
                max_new_tokens=forced or self._limit,
            )
        return output[0, 1:].tolist()
