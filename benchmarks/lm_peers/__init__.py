"""What `benchmarks.lm_pool` measures with: the LM clients that are compared, and the provider that they call."""
