"""The composition root: the command line, one main per role, embedded mode, local servers."""
