"""Pre-trained classifiers with an adapter: where they come from, and how they become a task."""

import logging

# PEFT imports bitsandbytes where it is installed, which then recommends a package whose kernels are not used here
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
