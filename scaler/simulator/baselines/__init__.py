"""Ways of forming batches that the papers compare with, in the place of workers/policy/batcher.py."""
