"""The processes of a real holder: a resident with the text and no network, a gateway with the
network and no text."""
