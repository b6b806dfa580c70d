# SPDX-License-Identifier: Apache-2.0
"""Retraining of quantized weights by distillation from the FP32 model (torch; imported by ``api.retrain``).

``banks`` are trainable codes, ``weights`` maps a model's matrices to banks, ``objective`` is the loss,
``development`` scores, ``loop`` trains, ``state`` makes a run resumable, ``session`` ties them together.
"""
