"""What rules find out about a place: what it means, what it is given to, what guards it, and what is done with it."""
