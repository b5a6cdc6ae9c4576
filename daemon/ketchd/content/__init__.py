"""Content by digest: blobs, images and their names, leases, garbage, archives."""
