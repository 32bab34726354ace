"""The programs as `python -m experiments.NAME`, the benchmark, and checks that take long."""
