"""A provider in a box: the OpenAI and the Anthropic dialect over one seeded world, and its clocks.

`simulation.Simulation` is the ASGI app with its world, `settings.WorldSettings` says what the world is
like, `clock` holds simulated and scaled time, and `server.serve` puts it on a loopback port.
"""
