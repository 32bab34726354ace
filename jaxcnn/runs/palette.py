"""Colours of figures and of the page."""

# Okabe and Ito's palette without yellow, which is too light for lines on white. Its order alternates dark and light.
PALETTE = ("#0072B2", "#D55E00", "#000000", "#CC79A7", "#009E73", "#E69F00", "#56B4E9")
RIGHT, WRONG = PALETTE[:2]
"""Colours of what a network got right and wrong."""
FAINTEST = 0.15
"""Share of a colour, mixed with white, for the smallest count: a single image stays visible."""


def mix_with_white(color: str, share: float) -> str:
    """The colour (#RRGGBB) that consists of `share` (0 to 1) of `color` and of white for the rest."""
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + share * (part - 255)):02x}" for part in parts)
