"""What a run is: its config and schema, its signature, its folder."""
