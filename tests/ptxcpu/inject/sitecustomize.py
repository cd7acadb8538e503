"""Put on PYTHONPATH by `ptxcpu run`: prepares PyTorch and Triton when a program imports them."""

import ptxcpu.inject_hooks

ptxcpu.inject_hooks.install()
