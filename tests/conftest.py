"""What every test file may use."""

import os

# The tests compare programs on the CPU, whatever else the machine has; before JAX starts, and for child processes too.
os.environ["JAX_PLATFORMS"] = "cpu"
