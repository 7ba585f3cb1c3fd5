"""From raw problems to a training set: rules, duplicates and benchmarks, each with a reason for every row it drops."""
