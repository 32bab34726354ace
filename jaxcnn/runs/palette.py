"""Colours of figures and of the page."""

# Okabe and Ito's palette without yellow, which is too light for lines on white. Its order alternates dark and light.
PALETTE = ("#0072B2", "#D55E00", "#000000", "#CC79A7", "#009E73", "#E69F00", "#56B4E9")
RIGHT, WRONG = PALETTE[:2]
"""Colours of what a network got right and wrong."""
FAINTEST = 0.15
"""Share of a colour on white that a single image among many still has."""
