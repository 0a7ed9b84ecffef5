"""The holder's commands, thin: parse, call, print."""
