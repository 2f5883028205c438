"""Images in registries: everything between a name and an OCI layout on this machine.

Nouns
    reference      what an image is called in a registry; the grammar is that of `worker.images.reference`
    registries     what the operator says of registries; from it, the endpoints to ask; `credentials` for them
    transport      connections: where they may go, and for how long; `urls`, `faults`
    authorization  basic and bearer tokens
    registry       the distribution API at one endpoint: digest_of, manifest, blob
    pull           resolve and pull, over mirrors, three blobs at a time; into a `sink`
    puller         all of it in a process without privileges; the one thing that others call
"""
