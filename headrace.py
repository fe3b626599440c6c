"""The public face of Headrace."""
