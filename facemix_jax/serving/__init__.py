"""Edge and cloud as two processes: the wire format, the service and its client.

The edge holds images, keys, pre and post; the cloud holds main and sees mixtures only. Mixing is
not a cipher: ``facemix_jax.attacks.separation`` undoes it without the key.

Nothing is imported here, so that the cloud's process loads ``serving.cloud`` and ``serving.wire``
without anything of the edge's.
"""
