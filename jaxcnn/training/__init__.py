"""From steps to epochs to a run, on arrays alone."""
