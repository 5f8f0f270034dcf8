"""Dollars, in Decimal: one module per question. Formulas with their sources: docs/guides/cost.md.

The basis is the GPU's price with its host included, for as long as a pod holds it: from scheduled to gone, loading and
idling too. A unit cost without traffic is None and never 0, which would read as free.
"""
