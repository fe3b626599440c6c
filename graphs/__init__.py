"""Pure graph logic: how an endpoint's stages chain. Today every endpoint has exactly one stage."""
