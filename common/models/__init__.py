"""Models and adapters: how they are loaded, adapted, computed in batches and written."""
