"""Images: a content-addressed store of unpacked layers, and everything that brings one in.

Processes
    stockade image   root, as any command of the operator. Reads manifests and configurations (`manifest`), which are
                     small, bounded and checked; moves bytes; owns the `store`. It never looks into a layer.
    decompressor     nobody, nothing but two pipes: gzip, zstd or xz in, a tar archive out.
    unpacker         root of a user namespace whose ids are nobody's, pivoted into the one directory that it fills:
                     reads the archive (`tar`) and makes the tree (`tree`).
    launcher         takes a digest and finds the layers of it (`worker.sandbox.images`), read-only and idmapped.
    puller           user stockade, one image's credentials, one directory: talks to registries (`remote`).

Life of a layer
    1  its digest's lock is taken, so that it is unpacked once however many want it
    2  bytes go: source -> we (count, SHA-256 of the blob) -> decompressor -> unpacker (SHA-256 of the archive)
    3  both digests are right, or it is thrown away; then all is on disk (syncfs), and one rename puts it in place
    4  images refer to it by its diff_id; it goes when the last one has gone (`collect`)

`confinement` is how the two children are locked up, `pipeline` starts them and moves the bytes, `hashes` is what
`verify` compares. The modules that the children load import the standard library only.
"""
