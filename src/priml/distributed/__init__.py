"""Where roles live when one process is not enough: sharded weights, and Ray actors that hold them."""
