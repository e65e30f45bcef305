"""Hydra's launchers of lora_exp. Hydra imports this package whenever it starts: nothing heavy."""
