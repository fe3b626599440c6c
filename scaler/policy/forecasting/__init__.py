"""Forecasts of an endpoint's rate: from one number a second to what the next seconds will not exceed. Pure."""
