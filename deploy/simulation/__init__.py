"""`headrace simulate`: scenario files, runs in processes, statistics, and what people get to see of them."""
