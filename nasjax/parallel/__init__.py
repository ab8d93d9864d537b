"""Work spread over processes and machines, on engines that exist."""
