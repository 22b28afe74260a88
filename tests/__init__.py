"""The tests, a room for each room of ktrace; `support` holds what they share."""
