"""Where training stands in its data, and documents that are read while training goes on."""
