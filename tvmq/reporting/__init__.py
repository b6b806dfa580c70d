# SPDX-License-Identifier: Apache-2.0
"""``tvmq report``: one HTML page that shows where a model's bits went, and what they cost.

``subject`` reads what the page is about, ``losses`` what is expected of it, ``measured`` what was found;
``figures`` draws, ``page`` writes, ``writer`` puts them together.
"""
