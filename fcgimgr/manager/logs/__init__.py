"""Where lines go: from a child's pipe, or from the manager itself, to a log. It never waits for whoever reads them."""
