"""What the method owes to which of its parts: studies over many tunings, each with its page and table."""
