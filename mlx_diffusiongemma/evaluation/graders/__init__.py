"""What a reply is worth: plain functions `Reply -> Grade`, and functions that make them."""
