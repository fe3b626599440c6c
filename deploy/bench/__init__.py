"""`headrace bench`: each row measures a baseline and Headrace in one run, and says their ratio."""
