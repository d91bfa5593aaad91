"""What crosses the wire: adapters over the official SDKs, and all that is known of the providers.

The only room that knows the SDKs. `opening.open_provider` is the way in; `capabilities` says what may be
asked, `bodies` and `schemas` how it is asked, `meanings` and the reply modules what came back.
"""
