"""One module per command of ``fairseq-synth``, each with ``register(commands)``."""
