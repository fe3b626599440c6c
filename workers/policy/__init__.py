"""Pure decisions of a worker: batching, dropping what expired, the life of a hosted variant."""
