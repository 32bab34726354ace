"""Studies: many runs that differ in some settings and in their seeds, and what can be said of them."""
