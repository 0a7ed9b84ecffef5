"""What travels between coordinator and holder, and in which bytes."""
