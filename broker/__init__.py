"""The data plane: dispatcher, sink, client and the logs and stores that they run on."""
