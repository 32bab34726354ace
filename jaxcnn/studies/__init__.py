"""Studies: planning, running and comparing many runs that differ in some settings and in their seeds."""
