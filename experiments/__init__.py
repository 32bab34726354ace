"""The programs of `jaxcnn.cli` as `python -m experiments.NAME`, the benchmark, and long checks."""
