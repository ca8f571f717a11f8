"""Secrets that never enter the guest, and rules for HTTP: what ends TLS for a few named hosts.

    guest ──TLS, by the sandbox's own CA──► connection ──TLS, fully checked──► host
                                            judge: rules, leaks, put-in
                                            audit: a line a request

    spec, http_rules      what users write        placeholder, vault   what the guest sees; values
    authority             the CA, certificates    hello                whom the guest wants
    wire                  TLS over a socket       connection           one connection, a thread
    judge, put_in         each request            masking              each response
    http1, http2          by h11 and h2: no parser of HTTP is ours
    guard                 the entrance; it is in the keeper, which alone has the values

What is needed beyond the core, h11, h2 and cryptography, is imported when a sandbox has a secret.
"""
