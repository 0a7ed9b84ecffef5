"""A federation of real holders, from the coordinator's side: keys and kits, the door that holders
come through, the processes behind it, and a run over them. Nothing here sees text or an update."""
