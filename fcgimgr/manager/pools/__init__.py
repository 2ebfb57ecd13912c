"""What core decides about one pool, carried out: its generations, their processes, and what is told of them."""
