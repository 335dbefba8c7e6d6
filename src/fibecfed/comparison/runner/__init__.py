"""Methods x tasks x seeds in parallel processes: what a comparison is, which runs it takes, and who makes them."""
